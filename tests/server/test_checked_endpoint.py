"""Checked captions over HTTP: their place in the queue, their refusals, and an end when nobody waits."""

from __future__ import annotations

import signal
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.conftest import scripted
from tests.patience import until
from tests.server.conftest import Running, refusal, running
from vision_lm import pictures
from vision_lm.checkpoint import Checkpoint
from vision_lm.images import open_image
from vision_lm.model import VisionLM
from vision_lm.prompts import Turn
from vision_lm.server import second_look
from vision_lm.server.settings import Settings

SCRIPT = "A cube, two cats and the dog with an image."
NAMED = [
    "cube",
    "cats",
    "dog",
]  # of each two questions are asked, which the model answers with neither yes nor no
WRITTEN = 17  # tokens of the caption
LOOK = 0.5  # seconds of a step of the second look


@dataclass
class Look:
    """How long a step of the second look takes, unless it is told to hurry."""

    seconds: float = LOOK
    hurry: threading.Event = field(default_factory=threading.Event)


@pytest.fixture
def look() -> Look:
    return Look()


@pytest.fixture
def naming(vit_checkpoint: Checkpoint, look: Look, monkeypatch: pytest.MonkeyPatch) -> VisionLM:
    """Says the script at once, and takes its time for questions about it."""
    vlm = VisionLM(scripted(vit_checkpoint, SCRIPT), device="cpu")
    submit, run = vlm.submit, vlm.engine.runner.run
    asked = "a caption"

    def submitted(turns: Sequence[Turn], *rest: Any) -> Any:
        nonlocal asked
        asked = turns[-1].question
        return submit(turns, *rest)

    def slowly(*arguments: Any) -> Any:
        if asked.endswith("?"):
            look.hurry.wait(look.seconds)
        return run(*arguments)

    monkeypatch.setattr(vlm, "submit", submitted)
    monkeypatch.setattr(vlm.engine.runner, "run", slowly)
    return vlm


def test_its_picture_is_read_once(naming: VisionLM, png: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also by later requests. `usage` is that of the caption; without `checked` it stays as it is written."""
    read: list[object] = []

    def counted(source: object, **options: Any) -> Image.Image:
        read.append(source)
        return open_image(source, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(pictures, "open_image", counted)
    with running({"naming": naming}) as server:
        said = server.client.post("/v1/caption", data={"checked": "true"}, files={"image": png}).json()
        assert (said["text"], said["unconfirmed"], said["unanswerable"]) == ("Several things.", NAMED, True)
        assert said["usage"]["completion_tokens"] == WRITTEN and len(read) == 1
        said = server.client.post("/v1/caption", files={"image": png}).json()
        assert (said["text"], said["unconfirmed"], said["unanswerable"]) == (SCRIPT, [], False)
        assert len(read) == 1


@pytest.mark.parametrize(
    ("path", "more", "said"),
    [
        ("/v1/caption", {"checked": "perhaps"}, "checked: "),
        ("/v1/caption", {"checked": True, "stream": True}, "stream: "),
        ("/v1/ask", {"checked": True, "question": "What?"}, "checked: "),
    ],
)
def test_what_it_is_not_for(
    server: Running, png: bytes, data_url: str, path: str, more: dict[str, Any], said: str
) -> None:
    """A caption's stream would say what is taken back; a question's answer names what was asked for."""
    assert said in refusal(server.client.post(path, json=more | {"image": data_url}), 422)["message"]
    assert said in refusal(server.client.post(path, data=more, files={"image": png}), 422)["message"]


def test_it_counts_as_the_answers_that_it_is(vlm: VisionLM, data_url: str) -> None:
    with running({"tiny": vlm}, Settings(max_queue=second_look.AT_ONCE - 1)) as server:
        asked = {"image": data_url, "checked": True}
        assert refusal(server.client.post("/v1/caption", json=asked), 429)["code"] == "queue_full"
        assert server.client.post("/v1/caption", json=asked | {"checked": False}).status_code == 200


def test_nobody_waits_for_it(naming: VisionLM, data_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that hangs up in the second look, or the service's own time: what was not asked yet never is."""
    monkeypatch.setattr(second_look, "AT_ONCE", 2)
    with running({"naming": naming}, Settings(timeout=1.5 * LOOK)) as server:
        asked, stats = {"image": data_url, "checked": True}, naming.engine.stats
        for hangs_up in (True, False):
            before = stats.generated_tokens
            if hangs_up:
                with pytest.raises(httpx.TimeoutException):
                    httpx.post(server.url + "/v1/caption", json=asked, timeout=LOOK)
            else:
                late = refusal(server.client.post("/v1/caption", json=asked), 504)
                assert f"not complete after {1.5 * LOOK:g} s" in late["message"]
            until(lambda: server.app.state.service.admission.taken == 0, 20)
            until(lambda: not naming.engine.scheduler.busy and naming.engine.pages.used == 0, 10)
            assert stats.generated_tokens - before < WRITTEN + 2 * len(NAMED)


def test_it_is_finished_before_the_end(naming: VisionLM, look: Look, data_url: str) -> None:
    """SIGTERM in the middle of the second look: nothing new begins, and this one is answered."""
    look.seconds = 60
    with running({"naming": naming}) as server, ThreadPoolExecutor(1) as threads:
        asked = {"image": data_url, "checked": True}
        answer = threads.submit(httpx.post, server.url + "/v1/caption", json=asked, timeout=60)
        until(lambda: naming.engine.stats.generated_tokens >= WRITTEN)
        server.server.handle_exit(signal.SIGTERM, None)
        assert refusal(server.client.post("/v1/caption", json=asked), 503)["code"] == "draining"
        look.hurry.set()
        assert answer.result().json()["unconfirmed"] == NAMED
