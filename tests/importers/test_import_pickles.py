"""Pickles that are not all there: known for what they are, and not taken for such as run code."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.importers.layouts import SMALL_CLIP, TEXT, Parts
from tests.importers.parity import save
from tests.importers.test_import_llava_phi import NAMES, config
from vision_lm.cli import main
from vision_lm.errors import CheckpointError
from vision_lm.importers.source import read_file


@pytest.mark.parametrize("zipped", [True, False], ids=["torch's format", "its older one"])
def test_a_pickle_that_ends_too_early(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], zipped: bool
) -> None:
    """One line names the file, how long it is, and what to do; nothing is written."""
    parts = Parts("clip", SMALL_CLIP, TEXT)
    folder = save(tmp_path / "theirs", config("clip", SMALL_CLIP, TEXT), parts.tensors(*NAMES))
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    path = folder / "pytorch_model.bin"
    torch.save(tensors, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    for cut in (len(whole) // 2, len(whole) - 10, 40, 0):
        path.write_bytes(whole[:cut])
        assert main(["import", str(folder), "--out", str(tmp_path / "out")]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        assert lines[0].startswith(f"vision-lm: error: {path}: damaged or half-written ({cut:,} bytes, ")
        assert lines[0].endswith("; fetch it again")
    assert not (tmp_path / "out").exists()
    path.write_bytes(whole)
    assert main(["import", str(folder), "--out", str(tmp_path / "out")]) == 0


@pytest.mark.parametrize("zipped", [True, False], ids=["torch's format", "its older one"])
def test_wherever_it_ends(tmp_path: Path, zipped: bool) -> None:
    """Cut within a name, a number or a tensor, its end looks to torch now like damage and now like forbidden code."""
    path = tmp_path / "whole.bin"
    torch.save({"a": torch.randn(9), "b": torch.zeros(2, 3)}, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    for end in range(0, len(whole), 7):
        path.write_bytes(whole[:end])
        with pytest.raises(CheckpointError, match=r"damaged or half-written .* fetch it again"):
            read_file(path)


def test_a_projector_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What LLaVA's first stage leaves is named, and not taken for a folder whose weights were forgotten."""
    parts = Parts("clip", SMALL_CLIP, TEXT)
    tensors = parts.tensors(*NAMES)
    folder = save(tmp_path / "theirs", config("clip", SMALL_CLIP, TEXT), tensors)
    (folder / "model.safetensors").unlink()
    alone = {name: tensor for name, tensor in tensors.items() if "mm_projector" in name}
    torch.save(alone, folder / "mm_projector.bin")
    assert main(["info", str(folder)]) == 2
    said = capsys.readouterr().err
    assert f"{folder}: a projector alone (mm_projector.bin), without its language model and tower" in said
    assert said.count("\n") == 1
