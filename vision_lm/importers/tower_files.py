"""An image tower that a checkpoint names (`mm_vision_tower`) and does not hold: SigLIP's folder, or EVA-CLIP's file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from vision_lm.errors import CheckpointError
from vision_lm.importers.eva_clip import read_eva_clip
from vision_lm.importers.source import Source, fetch_weights, open_source, read_weights

SIGLIP = "model.vision_tower.vision_tower.vision_model."
EVA = "model.vision_tower.vision_tower.model."


def with_tower(source: Source, tensors: Mapping[str, Tensor], tower: str | None) -> Mapping[str, Tensor]:
    """A checkpoint's tensors, with those of the tower that it names if it holds none. Raises CheckpointError."""
    if "mm_vision_tower" not in source.config or any("vision_tower." in name for name in tensors):
        return tensors
    return {**tensors, **tower_tensors(source, tower)}


def tower_tensors(source: Source, tower: str | None) -> dict[str, Tensor]:
    """The tower's tensors, named as if they were the checkpoint's. Raises CheckpointError.

    `tower`: a folder, file or hub id in place of the one that the checkpoint names. Which tower it is, its name says:
    as Bunny's code looks, "sig" in it is a SigLIP, else "eva" an EVA-CLIP.
    """
    named = source.config.get("mm_vision_tower")
    place = tower or known_name(named, source, "mm_vision_tower", "--tower")
    kind = str(named or place).lower()
    if "sig" not in kind and "eva" in kind:
        return {f"{EVA}{name}": tensor for name, tensor in read_eva_clip(place).items()}
    whole = read_weights(open_other(place))  # a SigLIP has a text tower too
    start = "vision_model."
    return {f"{SIGLIP}{name.removeprefix(start)}": t for name, t in whole.items() if name.startswith(start)}


def open_other(name: str) -> Source:
    """Another checkpoint's folder, its weights fetched if it is on the hub. Raises CheckpointError."""
    opened = open_source(name)
    fetch_weights(opened)
    return opened


def known_name(named: Any, source: Source, key: str, option: str) -> str:
    """What a file names, if it can be found from here. Raises CheckpointError."""
    command = f"vision-lm import {source.name} --out DIR {option} FOLDER_OR_ID"  # `load()` has no such option
    if not isinstance(named, str) or not named:
        raise CheckpointError(f"{source.where}: {key} is missing; name it: {command}")
    if named.startswith(("/", ".")) and not Path(named).exists():
        raise CheckpointError(f"{source.where}: {key} is {named}, which is not here; name it: {command}")
    return named
