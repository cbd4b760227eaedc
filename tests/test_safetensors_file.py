"""Our writer of safetensors against the package's own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vision_lm.errors import CheckpointError
from vision_lm.safetensors_file import write_tensors


def test_the_bytes_are_those_of_the_package(tmp_path: Path) -> None:
    """Every type that a weight has, scalars, empty tensors, columns of others and names that are not ASCII."""
    noise = torch.Generator().manual_seed(0)
    plain = torch.randn(7, 5, generator=noise)
    kinds = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    tensors = {f"{part}.{kind}": (plain + 1).to(kind) for part in "ba" for kind in kinds}
    tensors |= {
        "batches": torch.tensor(3),
        "places": torch.arange(5, dtype=torch.int32),
        "é": torch.zeros(0, 4),
    }
    save_file(tensors, tmp_path / "theirs", metadata={"format": "pt"})
    like = {name: tensor.to("meta") for name, tensor in tensors.items()}
    write_tensors(tmp_path / "ours", like, tensors.__getitem__)
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    turned = {"turned": plain.T}
    save_file({"turned": plain.T.contiguous()}, tmp_path / "theirs", metadata={"format": "pt"})
    write_tensors(tmp_path / "ours", turned, turned.__getitem__)
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_what_does_not_fit_its_header_is_not_written(tmp_path: Path) -> None:
    """A tensor of another shape would shift all that follow; a type that no weight has is named."""
    with pytest.raises(ValueError, match="a is not what the header says"):
        write_tensors(tmp_path / "it", {"a": torch.zeros(3)}, lambda _: torch.zeros(2))
    with pytest.raises(CheckpointError, match=r"other: a is torch\.bool; allowed: int64"):
        write_tensors(tmp_path / "other", {"a": torch.zeros(3, dtype=torch.bool)}, lambda _: torch.zeros(3))
    assert not (tmp_path / "other").exists()
