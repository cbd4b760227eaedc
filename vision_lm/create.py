"""Compose a checkpoint of any size: an open_clip image tower, a fresh projector, and a Phi language model."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from projector.module import Projector
from vision_lm.checkpoint import write_checkpoint
from vision_lm.config import Config, ProjectorConfig, PromptConfig
from vision_lm.errors import CheckpointError
from vision_lm.importers.open_clip import read_tower
from vision_lm.importers.transformers_phi import read_phi, with_free_row
from vision_lm.model_files import CONFIG
from vision_lm.skeleton import patch_layout

_DTYPES: dict[torch.dtype, Literal["float32", "bfloat16", "float16"]] = {
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}


def create(vision: str, text: str, out: Path, seed: int = 0) -> Config:
    """Write a checkpoint whose projector has random weights drawn from `seed`, and return its config.

    `vision` is an open_clip model and one of its tags ("ViT-L-14-336/openai"), or a folder or hub id in open_clip's
    layout. `text` is a Phi in transformers' layout: a folder or a hub id ("microsoft/phi-1_5").
    Raises CheckpointError for what cannot be fetched, and for what does not fit together.
    """
    if (out / CONFIG).exists():
        raise CheckpointError(f"{out}: holds a checkpoint already; choose another folder or remove this one")
    tower = read_tower(vision)
    phi, placeholder = with_free_row(read_phi(text))
    dtype = phi.tensors["lm_head.weight"].dtype
    if dtype not in _DTYPES:
        raise CheckpointError(f"{text}: weights of type {dtype}; allowed: {', '.join(_DTYPES.values())}")
    _, width = patch_layout(tower.config)  # N, Dv
    projector = ProjectorConfig(width, phi.config.hidden_size, phi.config.hidden_size)
    config = Config(
        name=f"{tower.name}+{Path(text).name}",
        vision=tower.config,
        projector=projector,
        text=phi.config,
        prompt=PromptConfig(image_token_id=placeholder, eos_token_id=phi.eos_token_id),
        dtype=_DTYPES[dtype],
    )
    fresh = _fresh_projector(projector, seed)
    parts = {"encoder.tower": tower.tensors, "projector": fresh, "phi": phi.tensors}
    tensors = {f"{prefix}.{name}": tensor for prefix, part in parts.items() for name, tensor in part.items()}
    write_checkpoint(out, config, tensors, phi.tokenizer)
    return config


def _fresh_projector(config: ProjectorConfig, seed: int) -> dict[str, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Projector(**dataclasses.asdict(config)).state_dict()
