"""The page's answers, wherever the model runs: those of the Python API and of the command line."""

from __future__ import annotations

import dataclasses
import http.server
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vision_lm
from demo.backend import Backend, Reply, Settings, Writing
from demo.in_process import InProcess
from demo.over_http import Server
from tests.conftest import scripted
from tests.demo.conftest import QUESTION
from tests.patience import until
from tests.server.conftest import running
from vision_lm.answer import Answer
from vision_lm.checkpoint import Checkpoint, write_checkpoint
from vision_lm.cli import main
from vision_lm.errors import ImageError, RequestError, VisionLMError
from vision_lm.model import VisionLM
from vision_lm.prompts import Turn
from vision_lm.server.settings import Settings as ServerSettings


def whole(writing: Writing) -> Reply:
    """The complete reply, each one before it its beginning."""
    replies = list(writing)
    for reply in replies[:-1]:
        assert replies[-1].text.startswith(reply.text) and reply.confidence is None
    return replies[-1]


def same(reply: Reply, answer: Answer) -> bool:
    sure = reply.confidence == pytest.approx(answer.confidence, abs=1e-5)
    return sure and (reply.text, reply.unanswerable) == (answer.text, answer.unanswerable)


def test_one_answer_through_every_door(
    trunk_checkpoint: Checkpoint, tmp_path: Path, files: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Python, the command line, and the page's two backends, the one over HTTP through a real service."""
    folder = tmp_path / "model"
    config = dataclasses.replace(trunk_checkpoint.config, projector_trained=True)
    write_checkpoint(folder, config, trunk_checkpoint.tensors, trunk_checkpoint.tokenizer)
    vlm = vision_lm.load(folder, device="cpu")
    settings = Settings("model")
    with running({"model": vlm}) as server:
        backends: list[Backend] = [InProcess({"model": vlm}), Server(server.url)]
        for backend in backends:
            assert list(backend.models) == ["model"]
            for length in ("short", "normal", "long"):
                caption = vlm.caption(files[0], length)  # type: ignore[arg-type]
                assert same(whole(backend.caption(files[0], length, settings)), caption)  # type: ignore[arg-type]
            answer = vlm.ask(files[0], QUESTION)
            assert same(whole(backend.answer([Turn(QUESTION, (files[0],))], settings)), answer)
            assert (
                main(["ask", str(files[0]), QUESTION, "--model", str(folder), "--device", "cpu", "--json"])
                == 0
            )
            assert json.loads(capsys.readouterr().out)["text"] == answer.text
            turns = [Turn("Question", (files[0], files[1]), "yes"), Turn(QUESTION, (files[2],))]
            messages = [
                {"role": "user", "content": [*pictures(files[:2]), "Question"]},
                {"role": "assistant", "content": "yes"},
                {"role": "user", "content": [*pictures(files[2:3]), QUESTION]},
            ]
            assert same(whole(backend.answer(turns, settings)), vlm.chat(messages))
            few = dataclasses.replace(settings, max_tokens=3)
            assert same(
                whole(backend.answer([Turn(QUESTION, (files[1],))], few)),
                vlm.ask(files[1], QUESTION, max_tokens=3),
            )


def pictures(paths: list[Path]) -> list[dict[str, Any]]:
    return [{"type": "image", "image": path} for path in paths]


def test_an_answer_that_nobody_reads_on_is_stopped(slow: VisionLM, files: list[Path]) -> None:
    """Also behind a server: closing is all that it takes."""
    settings = Settings("slow", max_tokens=512)
    with running({"slow": slow}) as server:
        for backend in (InProcess({"slow": slow}), Server(server.url)):
            before = slow.engine.stats.generated_tokens
            writing = backend.answer([Turn(QUESTION, (files[0],))], settings)
            next(writing)
            writing.close()
            slow.engine.wait()
            assert slow.engine.stats.generated_tokens - before < 300


@pytest.mark.parametrize("checked", [False, True])
def test_a_caption_that_nobody_waits_for_is_stopped(slow: VisionLM, files: list[Path], checked: bool) -> None:
    """Behind a server it comes in one piece; to stop waiting is to hang up, and ends the work there."""
    settings = Settings("slow", temperature=2.0, max_tokens=512, checked=checked)
    with running({"slow": slow}) as server:
        before = slow.engine.stats.generated_tokens
        writing = Server(server.url).caption(files[0], "long", settings)
        until(lambda: next(writing) == Reply("") and slow.engine.stats.generated_tokens > before)
        writing.close()
        until(
            lambda: 'status="499"' in server.client.get("/metrics").text
        )  # not 200: it did not come to its end
        until(lambda: not slow.engine.scheduler.busy and slow.engine.pages.used == 0)


def test_a_check_that_is_stopped(trunk_checkpoint: Checkpoint, files: list[Path]) -> None:
    """In the caption or in its second look: nothing was said yet, and what is not answered yet never is."""
    vlm = VisionLM(scripted(trunk_checkpoint, "A cube, two cats and the dog with an image."), device="cpu")
    backend, settings = InProcess({"naming": vlm}), Settings("naming", checked=True)
    replies = list(backend.caption(files[0], "short", settings))
    assert replies[-1].unconfirmed == ("cube", "cats", "dog")
    assert (
        set(replies[:-1]) == {Reply("")} and len(replies) == 2 + 6
    )  # a sentence, and two questions about each
    for read in range(1, len(replies)):
        writing = backend.caption(files[0], "short", settings)
        assert [next(writing).text for _ in range(read)] == [""] * read
        writing.close()
        vlm.engine.wait()
        assert vlm.engine.pages.used == 0


def test_temperature_is_passed_on(slow: VisionLM, files: list[Path]) -> None:
    """At a high temperature two answers differ; the greedy ones do not."""
    with running({"slow": slow}) as server:
        for backend in (InProcess({"slow": slow}), Server(server.url)):
            for temperature, different in ((0.0, False), (2.0, True)):
                settings = Settings("slow", temperature, max_tokens=12)
                turns = [Turn(QUESTION, (files[0],))]
                texts = {whole(backend.answer(turns, settings)).text for _ in range(2)}
                assert (len(texts) == 2) == different


def test_where_it_looked_is_the_python_apis(looking: VisionLM, files: list[Path]) -> None:
    """In this process, and to six digits behind a server: for a chat's second picture, and for a caption."""
    settings, turns = Settings("looking"), [Turn(QUESTION, (files[0],)), Turn(QUESTION, (files[1],))]
    turns[0] = dataclasses.replace(turns[0], answer="yes")
    answer, caption = looking.ask(files[0], QUESTION).text, looking.caption(files[0], "short").text
    messages = [
        {"role": "user", "content": [*pictures(files[:1]), QUESTION]},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": [*pictures(files[1:2]), QUESTION]},
    ]
    own = looking.explain_chat(messages, 1, answer=answer)
    request = looking.prompts.caption_question("short")
    captions = looking.explain(files[0], request, answer=caption)
    with running({"looking": looking}) as service:
        for backend in (InProcess({"looking": looking}), Server(service.url)):
            found = backend.explain(turns, 1, answer, settings)
            np.testing.assert_allclose(found.windows, own.windows, atol=1e-5)
            assert found.box == own.box and found.image.size == own.image.size and str(found) == str(own)
            found = backend.explain_caption(files[0], "short", caption, settings)
            np.testing.assert_allclose(found.windows, captions.windows, atol=1e-5)
            assert found.answer.text == caption and found.image.size == (40, 70)


def test_a_server_that_refuses(looking: VisionLM, files: list[Path], no_picture: Path) -> None:
    """What it says reaches the visitor as it is."""
    with running({"looking": looking}, ServerSettings(max_pixels=100, max_tokens=10)) as service:
        server = Server(service.url + "/v1/")  # as people copy it from another client
        with pytest.raises(RequestError, match="40 x 70 pixels is too large; allowed: 100 pixels"):
            whole(server.caption(files[0], "short", Settings("looking")))
        with pytest.raises(RequestError, match="max_tokens is 64; allowed: up to 10"):
            whole(server.answer([Turn(QUESTION, (files[0],))], Settings("looking", max_tokens=64)))
        with pytest.raises(RequestError, match="there is no model 'other'; there are: looking"):
            whole(server.answer([Turn(QUESTION, (files[0],))], Settings("other")))
        with pytest.raises(RequestError, match="40 x 70 pixels is too large; allowed: 100 pixels"):
            server.explain([Turn(QUESTION, (files[0],))], 0, "yes", Settings("looking"))
    with pytest.raises(VisionLMError, match="does not answer .*; start `vision-lm serve` there"):
        whole(server.answer([Turn(QUESTION)], Settings("looking")))
    with pytest.raises(ImageError, match="this is text, not a picture"):
        whole(InProcess({"looking": looking}).caption(no_picture, "short", Settings("looking")))


def test_a_server_with_a_key(looking: VisionLM) -> None:
    with running({"looking": looking}, ServerSettings(api_key="a good key")) as service:
        for key in (None, "another key"):
            with pytest.raises(VisionLMError, match="asks for a key, and the one given is missing or wrong"):
                Server(service.url, key)
        assert Server(service.url, "a good key").models == ["looking"]


@pytest.mark.parametrize("body", [b"hello", b"[]", b'{"data": [{}]}', b'{"data": []}'])
def test_something_else_that_answers(body: bytes) -> None:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    other = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=other.serve_forever, daemon=True).start()
    try:
        with pytest.raises(VisionLMError, match="is no vision-lm service|has no models"):
            Server(f"http://127.0.0.1:{other.server_port}")
    finally:
        other.shutdown()
        other.server_close()
