"""An export that its engine does not answer from as the checkpoint does ends with status 1, and says so.

What was written is damaged between the writing and the verifying, by a writer that goes on after the real one. gguf's
is in test_llama_cpp.py.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from tests.conftest import VIT, random_checkpoint, text_config
from vision_lm.checkpoint import write_checkpoint
from vision_lm.cli import main
from vision_lm.exporters import hf_llava, onnx_files

ROOT = Path(__file__).parents[2]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A CLIP and a Phi of random weights."""
    checkpoint = random_checkpoint(VIT, text_config(num_key_value_heads=4))
    write_checkpoint(tmp_path / "m", checkpoint.config, checkpoint.tensors, checkpoint.tokenizer)
    return tmp_path / "m"


def refuse(model: Path, target: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exported whole, with status 1, the share of equal answers and one line that says where to look."""
    out = model.parent / "out"
    assert main(["export", str(model), "--to", target, "--out", str(out)]) == 1
    said = capsys.readouterr()
    report = json.loads((out / "export_report.json").read_text())
    assert not report["passed"] and report["equal_answers"] < report["agreement"] == 0.95
    assert f"equal answers: {report['equal_answers']:.1%} of 32 prompts; asked for: 95.0%" in said.out
    assert said.err == f"vision-lm: error: {out}: does not agree; see export_report.json there\n"


def damaged(write: Callable[..., Any], damage: Callable[[Path], None]) -> Callable[..., Any]:
    """The writer, and then `damage` to the folder that it wrote."""

    def both(checkpoint: Any, out: Path, *rest: Any, **settings: Any) -> Any:
        notes = write(checkpoint, out, *rest, **settings)
        damage(out)
        return notes

    return both


def test_transformers(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows of the projector's second layer in another order."""

    def damage(out: Path) -> None:
        tensors = load_file(out / "model.safetensors")
        name = "multi_modal_projector.linear_2.weight"
        save_file({**tensors, name: tensors[name].flip(0)}, out / "model.safetensors", {"format": "pt"})

    monkeypatch.setattr(hf_llava, "write_hf_llava", damaged(hf_llava.write_hf_llava, damage))
    refuse(model, "hf-llava", capsys)


def test_onnxruntime(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows of the embedding in another order."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")

    def damage(out: Path) -> None:
        path = out / "onnx" / "embed_tokens.onnx"
        graph = onnx.load(path)
        (table,) = (one for one in graph.graph.initializer if len(one.dims) == 2)
        rows = onnx.numpy_helper.to_array(table)
        table.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(rows[::-1]), table.name))
        onnx.save(graph, path)

    monkeypatch.setattr(onnx_files, "write_graphs", damaged(onnx_files.write_graphs, damage))
    refuse(model, "onnx", capsys)


def test_openvino(model: Path) -> None:
    """The same. In a process of its own: see test_openvino.py."""
    pytest.importorskip("openvino")
    out = model.parent / "out"
    program = f"""
import sys
from pathlib import Path
import numpy as np
from tests.exporters.test_disagreement import damaged
from vision_lm.cli import main
from vision_lm.exporters import onnx_files

def damage(out: Path) -> None:
    table = np.memmap(out / "openvino" / "embed_tokens.bin", np.float32, "r+", shape=(416, 64))
    table[:] = table[::-1].copy()
    table.flush()

onnx_files.write_graphs = damaged(onnx_files.write_graphs, damage)
sys.exit(main(["export", {str(model)!r}, "--to", "openvino", "--out", {str(out)!r}]))
"""
    ran = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 1, ran.stderr
    report = json.loads((out / "export_report.json").read_text())
    assert report["verified_with"].startswith("openvino ")
    assert not report["passed"] and report["equal_answers"] < 0.95
    assert (
        ran.stderr.splitlines()[-1]
        == f"vision-lm: error: {out}: does not agree; see export_report.json there"
    )
