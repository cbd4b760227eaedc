"""Exports to OpenVINO, which verify themselves in it."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from tests.conftest import VIT, random_checkpoint, text_config
from vision_lm.checkpoint import write_checkpoint
from vision_lm.exporters.verify import samples
from vision_lm.model import VisionLM

ROOT = Path(__file__).parents[2]


def test_openvino_answers_the_same(tmp_path: Path) -> None:
    """An EVA-CLIP with Phi, converted from the same graphs, verifies itself in openvino; a damaged one is noticed; and
    openvino tells its maker nothing.

    In processes of their own, as users have it: with openvino in a process, AMX and a signal end it on some kernels.
    """
    eva = dataclasses.replace(VIT, kind="eva", tower={**VIT.tower, "pt_hw_seq_len": 2})
    checkpoint = random_checkpoint(eva, text_config(num_key_value_heads=4, partial_rotary_factor=1.0))
    write_checkpoint(tmp_path / "m", checkpoint.config, checkpoint.tensors, checkpoint.tokenizer)
    out = tmp_path / "out"
    home = {**os.environ, "HOME": str(tmp_path / "home")}
    home.pop("CI", None)  # where it keeps still by itself

    def run(*arguments: str) -> str:
        return subprocess.run(
            [sys.executable, *arguments], cwd=ROOT, env=home, capture_output=True, text=True, check=True
        ).stdout

    (tmp_path / "home").mkdir()
    printed = run("-m", "vision_lm", "export", str(tmp_path / "m"), "--to", "openvino", "--out", str(out))
    assert "verified with openvino " in printed
    assert "equal answers: 100.0% of 32 prompts" in printed
    assert not (out / "onnx").exists()
    ours = f"""
import sys
from pathlib import Path
from vision_lm.exporters.graph_model import GraphModel
from vision_lm.exporters.verify import samples
shown = list(samples(6, 32))
model = GraphModel(Path({str(out)!r}))
said = model.answer([one.image for one in shown], [one.question for one in shown], 8)
print([answer.tokens for answer in said])
assert not any(name.startswith("openvino_telemetry.") for name in sys.modules)
"""
    vlm = VisionLM(checkpoint, "cpu", "float32")
    for one, theirs in zip(samples(6, 32), json.loads(run("-c", ours)), strict=True):
        own = list(vlm.ask(one.image, one.question, max_tokens=8).tokens)
        assert own == theirs[: len(own)]
    assert not (tmp_path / "home" / "intel").exists(), "where its telemetry keeps the user's number"

    table = np.memmap(out / "openvino" / "embed_tokens.bin", np.float32, "r+", shape=(416, 64))
    table[:] = table[::-1].copy()
    table.flush()
    judged = f"""
from pathlib import Path
from vision_lm.checkpoint import read_checkpoint
from vision_lm.exporters.graph_runtime import GraphRuntime
from vision_lm.exporters.verify import compare
from vision_lm.model import VisionLM
vlm = VisionLM(read_checkpoint({str(tmp_path / "m")!r}), "cpu", "float32")
print(compare(vlm, GraphRuntime(Path({str(out)!r})), "", [], 0.95, count=8).passed)
"""
    assert run("-c", judged).strip() == "False"
