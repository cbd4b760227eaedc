"""Python, the command line and the service say the same about the same picture."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

import vision_lm
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
