"""LoRA weights as peft saves them, and LLaVA's way of publishing them: beside a base model and a tower that go on their own.

adapter_config.json, adapter_model.safetensors or .bin   the low-rank matrices
non_lora_trainables.bin                                  what was trained in full: the projector
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from vision_lm.errors import CheckpointError
from vision_lm.importers.source import (
    ADAPTER,
    ADAPTER_WEIGHTS,
    NON_LORA,
    Source,
    read_file,
    read_json,
    read_weights,
)
from vision_lm.importers.tensor_table import From, Table
from vision_lm.importers.tower_files import known_name, open_other, tower_tensors

_PEFT = "base_model.model."


def open_base(source: Source, base: str | None) -> Source:
    """The language model that LoRA weights go with. `base`: in place of the one that they name. Raises CheckpointError."""
    named = read_json(source.folder / ADAPTER).get("base_model_name_or_path")
    return open_other(base or known_name(named, source, "base_model_name_or_path", "--base"))


def lora_tensors(source: Source, base: Source, tower: str | None) -> dict[str, Tensor]:
    """All the tensors of a model that is published as LoRA weights: the base's, the tower's, and what was trained.

    `tower`: see `tower_tensors`. Raises CheckpointError.
    """
    tensors = read_weights(base) | tower_tensors(source, tower)
    tensors |= {_whole_name(name): tensor for name, tensor in read_file(source.folder / NON_LORA).items()}
    safe, pickled = (source.folder / name for name in ADAPTER_WEIGHTS)
    return tensors | read_file(safe if safe.is_file() else pickled)


def is_lora(tensors: Mapping[str, Tensor]) -> bool:
    """Whether there are low-rank matrices among them."""
    return any(".lora_A." in name for name in tensors)


def merged(table: Table, source: Source, tensors: Mapping[str, Tensor]) -> Table:
    """The table with W + (alpha / r) B A in place of every W that has low-rank matrices (arXiv 2106.09685)."""
    settings = read_json(source.folder / ADAPTER)
    scale = _scale(settings, source.folder / ADAPTER)

    def merge(parts: Sequence[Tensor]) -> Tensor:
        weight, low, high = parts  # (out, in), (r, in), (out, r)
        return (weight.float() + scale * (high.float() @ low.float())).to(weight.dtype)

    changed = dict(table)
    for ours, one in table.items():
        stem = one.names[0].removesuffix(".weight")
        low, high = f"{_PEFT}{stem}.lora_A.weight", f"{_PEFT}{stem}.lora_B.weight"
        if low in tensors and one.make is None:
            changed[ours] = From(
                (*one.names, low, high), merge, f"merged, {scale:g} times their product added"
            )
    return changed


def _scale(settings: Mapping[str, Any], where: Path) -> float:
    plain: tuple[tuple[str, Any], ...] = (
        ("bias", "none"),
        ("use_dora", False),
        ("fan_in_fan_out", False),
        ("rank_pattern", {}),
        ("alpha_pattern", {}),
    )
    for key, allowed in plain:
        if (settings.get(key) or allowed) != allowed:
            raise CheckpointError(f"{where}: {key} {settings[key]!r} is not supported, only {allowed!r}")
    try:
        rank, alpha = int(settings["r"]), float(settings["lora_alpha"])
        return alpha / (rank**0.5 if settings.get("use_rslora") else rank)
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        raise CheckpointError(f"{where}: r and lora_alpha are missing or no numbers") from None


def _whole_name(name: str) -> str:
    """Their names have one or two wrappers' prefixes: base_model.model.model.mm_projector.0.weight."""
    name = name.removeprefix("base_model.")
    return name.removeprefix("model.") if name.startswith("model.model.") else name
