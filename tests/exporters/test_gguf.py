"""gguf exports, judged by the `gguf` package's own reader and by llama.cpp's own list of names."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import VIT, random_checkpoint, text_config
from tests.exporters.tiny_siglip import SIGLIP
from vision_lm.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from vision_lm.cli import main
from vision_lm.errors import ExportError
from vision_lm.exporters.gguf_files import EYES, LANGUAGE, write_gguf

gguf = pytest.importorskip("gguf")


def read(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The settings and the tensors of a file."""
    reader = gguf.GGUFReader(path)
    settings = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {}
    for one in reader.tensors:
        values = gguf.quants.dequantize(one.data, one.tensor_type)
        tensors[one.name] = torch.from_numpy(values.copy()).reshape(*reversed(one.shape.tolist()))
    return settings, tensors


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_tensors_and_names_are_llama_cpps(dtype: torch.dtype, tmp_path: Path) -> None:
    """Every tensor of the language model, bias of the head and all, under the name that llama.cpp's own map gives it."""
    checkpoint = random_checkpoint(SIGLIP)
    tensors = {name: t.to(dtype) for name, t in checkpoint.tensors.items()}
    report = write_gguf(dataclasses.replace(checkpoint, tensors=tensors), tmp_path / "out")
    assert report.passed
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.PHI2, checkpoint.config.text.num_hidden_layers)
    settings, found = read(tmp_path / "out" / LANGUAGE)
    phi = {name.removeprefix("phi."): t for name, t in tensors.items() if name.startswith("phi.")}
    assert len(found) == len(phi)
    for name, tensor in phi.items():
        theirs = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert torch.equal(found[theirs], tensor.float()), name
    assert found["output.bias"].abs().max() > 0
    text = checkpoint.config.text
    assert settings["general.architecture"] == "phi2"
    assert settings["phi2.rope.dimension_count"] == text.rotary_dim
    assert settings["phi2.attention.head_count_kv"] == text.num_key_value_heads
    assert len(settings["tokenizer.ggml.tokens"]) == text.vocab_size

    eyes, found = read(tmp_path / "out" / EYES)
    assert (eyes["clip.projector_type"], eyes["clip.vision.block_count"]) == ("mlp", 2)
    assert eyes["clip.vision.feature_layer"] == [2], "the last of the two that are read"
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.MMPROJ, 2)
    qkv = tensors["encoder.tower.trunk.blocks.1.attn.qkv.weight"].float()
    for part, rows in zip("qkv", qkv.chunk(3), strict=True):
        ours = f"vision_tower.vision_model.encoder.layers.1.self_attn.{part}_proj.weight"
        assert torch.equal(found[names.get_name(ours, try_suffixes=(".weight",))], rows)
    for number in (0, 2):
        assert torch.equal(
            found[f"mm.{number}.bias"][:48], tensors[f"projector.patches.{number}.bias"].float()[:48]
        )


def test_mini_has_a_language_model_for_llama_cpp(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its eyes are refused, by name and with nothing written; its language model is there, tensor for tensor.

    Without xllamacpp the export says that no answers were compared.
    """
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    out = tmp_path / "out"
    assert main(["export", "mini", "--to", "gguf", "--out", str(out)]) == 2
    assert "pooled tokens" in capsys.readouterr().err
    assert not out.exists()
    assert main(["export", "mini", "--to", "gguf", "--language-only", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "75 tensors read back, 0 differ" in printed
    assert "answers were not compared: llama.cpp is not called" in printed
    mini = read_checkpoint("mini")
    _, found = read(out / LANGUAGE)
    assert torch.equal(found["output.bias"], mini.tensors["phi.lm_head.bias"].float())
    assert json.loads((out / "export_report.json").read_text())["passed"]


def test_what_llama_cpp_computes_otherwise_is_refused(tmp_path: Path) -> None:
    """A class token, and a tokenizer of another kind."""
    with pytest.raises(ExportError, match="a class token"):
        write_gguf(random_checkpoint(VIT), tmp_path / "out")
    checkpoint: Checkpoint = random_checkpoint(VIT, text_config())
    from tokenizers import normalizers

    checkpoint.tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(ExportError, match="byte-level BPE"):
        write_gguf(checkpoint, tmp_path / "out", language_only=True)
    write_checkpoint(tmp_path / "m", checkpoint.config, checkpoint.tensors, checkpoint.tokenizer)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.partial").exists()
