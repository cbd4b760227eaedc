"""Where an answer comes from, over HTTP: the numbers of the Python API, its refusals, and an end when nobody waits."""

from __future__ import annotations

from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.patience import until
from tests.server.conftest import QUESTION, Running, asked, refusal, running
from vision_lm.answerer import ANSWER_TOKENS
from vision_lm.explain import explain
from vision_lm.model import VisionLM
from vision_lm.prompts import Turn
from vision_lm.server.service import Service
from vision_lm.server.settings import Settings


def body(content: Any, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}]} | more


def post(server: Running, content: Any, **more: Any) -> httpx.Response:
    return server.client.post("/v1/explain", json=body(content, **more))


@pytest.mark.parametrize(
    "more", [{}, {"answer": "yes"}, {"caption": "short"}], ids=["own", "given", "caption"]
)
def test_the_numbers_are_the_python_apis(
    server: Running, vlm: VisionLM, pictures: list[Image.Image], data_url: str, more: dict[str, str]
) -> None:
    """Of the model's own answer, of a given one, and of a caption, which is asked for without words."""
    content = asked(data_url)
    question, own = QUESTION, vlm.task(ANSWER_TOKENS, {})
    if "caption" in more:
        content, (question, own) = content[1:], vlm.caption_task("short", {})
    given = post(server, content, grid=3, **more).json()
    found = explain(vlm, [Turn(question, (pictures[0],))], 0, more.get("answer"), 3, own)
    np.testing.assert_allclose(given["windows"], found.windows, atol=1e-5)
    np.testing.assert_allclose(given["cells"], found.cells, atol=1e-5)
    assert (given["answer"], given["words"], given["decisive"]) == (
        found.answer.text,
        str(found),
        found.decisive,
    )
    assert given["confidence"] == pytest.approx(found.answer.confidence, abs=1e-5)
    assert (tuple(given["size"]), tuple(given["box"])) == (found.image.size, found.box)


@pytest.mark.parametrize(
    ("more", "status", "said"),
    [
        ({"picture": 1}, 400, "picture is '1'; give 0 to 0"),
        ({"grid": 9}, 422, "grid: "),
        ({"answer": " "}, 400, "answer is ' '; give a text"),
        ({"model": "other"}, 404, "there is no model 'other'; there are: tiny, same"),
        ({"length": "short"}, 422, "length: "),
    ],
)
def test_what_cannot_be_explained(
    server: Running, data_url: str, more: dict[str, Any], status: int, said: str
) -> None:
    assert said in refusal(post(server, asked(data_url), **more), status)["message"]


def test_what_cannot_be_explained_opens_no_picture(
    server: Running, data_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight pictures of fifty million pixels each would be a gigabyte, for nothing."""
    monkeypatch.setattr(Service, "opened", lambda *_: pytest.fail("a picture was opened"))
    assert "give 0 to 0" in refusal(post(server, asked(data_url), picture=1), 400)["message"]


def test_there_must_be_a_picture_and_it_is_no_path(server: Running) -> None:
    assert "there is no picture" in refusal(post(server, asked(None)), 400)["message"]
    assert "allowed: data:image" in refusal(post(server, asked("/etc/passwd")), 400)["message"]


def test_it_counts_as_the_answers_that_it_is(slow: VisionLM, data_url: str) -> None:
    with running({"slow": slow}, Settings(max_queue=15)) as server:
        assert refusal(post(server, asked(data_url)), 429)["code"] == "queue_full"


def test_nobody_waits_for_it(slow: VisionLM, data_url: str) -> None:
    """A client that hangs up, or the service's own time: the rest of the pictures is never computed."""
    with running({"slow": slow}, Settings(timeout=1)) as server:
        said = {"answer": "yes " * 40, "grid": 8}
        for read in (0.3, 30):
            before = slow.engine.stats.generated_tokens
            if read == 30:
                assert (
                    "not complete after 1 s" in refusal(post(server, asked(data_url), **said), 504)["message"]
                )
            else:
                with pytest.raises(httpx.TimeoutException):
                    httpx.post(server.url + "/v1/explain", json=body(asked(data_url), **said), timeout=read)
            until(lambda: server.app.state.service.admission.taken == 0, 20)
            until(lambda: not slow.engine.scheduler.busy, 10)
            assert slow.engine.stats.generated_tokens - before < 100 * 40  # of 165 answers
