"""`vision-lm serve` with two checkpoints: each request is answered by the one that it names."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.conftest import QUESTION, asked, refusal
from vision_lm.checkpoint import Checkpoint, write_checkpoint
from vision_lm.model import VisionLM

pytestmark = pytest.mark.slow


def saved(checkpoint: Checkpoint, folder: Path) -> VisionLM:
    """The checkpoint in a folder, and the model that it is."""
    config = dataclasses.replace(checkpoint.config, projector_trained=True)
    write_checkpoint(folder, config, checkpoint.tensors, checkpoint.tokenizer)
    return VisionLM.from_pretrained(folder, "cpu")


def test_each_is_answered_by_its_own(
    vit_checkpoint: Checkpoint, trunk_checkpoint: Checkpoint, tmp_path: Path, png: bytes, data_url: str
) -> None:
    """At every endpoint, in turn and at the same moment; who names none is answered by the first."""
    models = {"a": saved(vit_checkpoint, tmp_path / "a"), "b": saved(trunk_checkpoint, tmp_path / "b")}
    answers = {name: vlm.ask(png, QUESTION).text for name, vlm in models.items()}
    captions = {name: vlm.caption(png, "short").text for name, vlm in models.items()}
    assert len(set(answers.values())) == len(set(captions.values())) == 2
    named = [one for name in models for one in ("--model", f"{name}={tmp_path / name}")]
    command = [sys.executable, "-m", "vision_lm", "serve", *named, "--port", "0", "--device", "cpu"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        lines = [json.loads(process.stderr.readline()) for _ in range(3)]
        assert [line.get("model") for line in lines] == ["a", "b", None]
        assert lines[0]["engine_pid"] != lines[1]["engine_pid"]
        with httpx.Client(base_url=f"http://127.0.0.1:{lines[2]['port']}", timeout=120) as client:
            assert [one["id"] for one in client.get("/v1/models").json()["data"]] == ["a", "b"]
            chat = {"messages": [{"role": "user", "content": asked(data_url)}]}

            def check(name: str | None) -> None:
                chosen: dict[str, Any] = {} if name is None else {"model": name}
                name = name or "a"

                def post(path: str, body: dict[str, Any]) -> dict[str, Any]:
                    given: dict[str, Any] = client.post(path, json=body | chosen).json()
                    assert given["model"] == name
                    return given

                said = post("/v1/chat/completions", chat)["choices"][0]["message"]["content"]
                assert said == answers[name]
                assert post("/v1/ask", {"image": data_url, "question": QUESTION})["text"] == answers[name]
                assert post("/v1/caption", {"image": data_url, "length": "short"})["text"] == captions[name]
                assert post("/v1/explain", chat | {"grid": 2})["answer"] == answers[name]

            with ThreadPoolExecutor(6) as threads:
                list(threads.map(check, [*models, None] * 4))
            missing = client.post("/v1/chat/completions", json=chat | {"model": "c"})
            assert "there are: a, b" in refusal(missing, 404)["message"]
    finally:
        process.kill()
        process.wait()
