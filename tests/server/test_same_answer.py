"""Python, the command line, the service, and of checked captions batch and demo too, say the same about a picture."""

from __future__ import annotations

import base64
import dataclasses
import json
from pathlib import Path

import pytest

import vision_lm
from demo.backend import Settings as DemoSettings
from demo.in_process import InProcess
from demo.over_http import Server
from tests.batch.conftest import draw, json_rows
from tests.server.conftest import QUESTION, asked, running
from vision_lm.checkpoint import Checkpoint, write_checkpoint
from vision_lm.cli import main


def test_one_answer_through_every_door(
    tiny_checkpoint: Checkpoint,
    tmp_path: Path,
    png: bytes,
    data_url: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Captions of each length and an answer: text, tokens' number, confidence and reason agree, for both towers."""
    folder = tmp_path / "model"
    config = dataclasses.replace(tiny_checkpoint.config, projector_trained=True)
    write_checkpoint(folder, config, tiny_checkpoint.tensors, tiny_checkpoint.tokenizer)
    picture = tmp_path / "picture.png"
    picture.write_bytes(png)
    vlm = vision_lm.load(folder, device="cpu")
    with running({"model": vlm}) as server:
        for length in ("short", "normal", "long", None):
            if length is None:
                answer = vlm.ask(picture, QUESTION)
                command = ["ask", str(picture), QUESTION]
                bodies = {"question": QUESTION}
                path = "/v1/ask"
                chat = server.chat(asked(data_url)).json()["choices"][0]
                assert chat["message"]["content"] == answer.text
            else:
                answer = vlm.caption(picture, length)  # type: ignore[arg-type]
                command = ["caption", str(picture), "--length", length]
                bodies = {"length": length}
                path = "/v1/caption"
            assert main([*command, "--model", str(folder), "--device", "cpu", "--json"]) == 0
            printed = json.loads(capsys.readouterr().out)
            as_json = server.client.post(path, json=bodies | {"image": data_url}).json()
            as_form = server.client.post(path, data=bodies, files={"image": png}).json()
            assert as_json == as_form
            assert printed["text"] == as_json["text"] == answer.text
            assert printed["finish_reason"] == as_json["finish_reason"] == answer.finish_reason
            assert len(printed["tokens"]) == as_json["usage"]["completion_tokens"] == len(answer.tokens)
            assert as_json["confidence"] == pytest.approx(answer.confidence, abs=1e-5)
            assert printed["confidence"] == pytest.approx(answer.confidence, abs=1e-4)


def test_a_checked_caption_through_every_door(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is said and what was taken back: Python, both commands, the service's two kinds of body, the demo's backends."""
    paths = [draw(tmp_path / "in" / f"{seed}.png", seed) for seed in range(4)]
    vlm = vision_lm.load("mini", device="cpu")
    said = [vlm.caption(path, "long", checked=True) for path in paths]
    assert any(one.unconfirmed for one in said)
    command = ["--check", "--device", "cpu"]
    assert main(["caption", *map(str, paths), "--length", "long", "--json", *command]) == 0
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    out = tmp_path / "out.jsonl"
    assert main(["batch", str(tmp_path / "in"), "--caption", "long", "--out", str(out), *command]) == 0
    for answer, line, row in zip(said, printed, json_rows(out), strict=True):
        for one, prefix in ((line, ""), (row, "caption_")):
            assert one[prefix.rstrip("_") or "text"] == answer.text
            assert one[f"{prefix}unconfirmed"] == list(answer.unconfirmed)
            assert one[f"{prefix}unanswerable"] is answer.unanswerable
            assert one[f"{prefix}confidence"] == pytest.approx(answer.confidence, abs=1e-3)
    with running({"mini": vlm}) as server:
        for path, answer in zip(paths, said, strict=True):
            url = f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
            asked = {"length": "long", "checked": True}
            as_json = server.client.post("/v1/caption", json=asked | {"image": url}).json()
            as_form = server.client.post("/v1/caption", data=asked, files={"image": path.read_bytes()}).json()
            assert as_json == as_form
            assert (as_json["text"], as_json["unconfirmed"]) == (answer.text, list(answer.unconfirmed))
            assert as_json["unanswerable"] is answer.unanswerable
            assert as_json["usage"]["completion_tokens"] == len(answer.tokens)
            for backend in (InProcess({"mini": vlm}), Server(server.url)):
                *_, reply = backend.caption(path, "long", DemoSettings("mini", checked=True))
                assert (reply.text, reply.unconfirmed) == (answer.text, answer.unconfirmed)
                assert (reply.unanswerable, reply.finish_reason) == (
                    answer.unanswerable,
                    answer.finish_reason,
                )
