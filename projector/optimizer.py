"""What moves the weights: AdamW, or Muon for the matrices and AdamW for the rest; and the learning rate's course."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from projector.muon import Muon
from projector.recipe import Recipe
from projector.vision_language import VisionLanguage


def build_optimizers(model: VisionLanguage, recipe: Recipe, muon_dtype: torch.dtype) -> list[Optimizer]:
    """One optimiser, or with `muon` two: Muon for what maps one hidden state to another.

    Embeddings, the head, norms, biases and the tower are AdamW's in both cases.
    """
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    by_muon = [p for name, p in named if recipe.optimizer == "muon" and is_hidden_matrix(name, p)]
    taken = {id(parameter) for parameter in by_muon}
    rest = [(name, parameter) for name, parameter in named if id(parameter) not in taken]
    optimizers: list[Optimizer] = []
    if rest:  # LoRA alone is all matrices
        groups = parameter_groups(rest, recipe)
        optimizers.append(torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98)))
    if by_muon:
        optimizers.append(Muon(by_muon, recipe.learning_rate, recipe.weight_decay, muon_dtype))
    return optimizers


def is_hidden_matrix(name: str, parameter: Tensor) -> bool:
    """A linear layer inside Phi or the projector: neither the head nor a table with a row for each of many things.

    Class probabilities are nearly one-hot, so the layer that reads them is such a table too.
    """
    tables = ("embed_tokens", "lm_head", "positions", "pooled.0")
    return parameter.ndim == 2 and not name.startswith("encoder.") and not any(t in name for t in tables)


def parameter_groups(named: Sequence[tuple[str, Tensor]], recipe: Recipe) -> list[dict[str, Any]]:
    """The tower learns slower, and neither norms nor biases are decayed."""
    groups: dict[tuple[bool, bool], list[Tensor]] = {}
    for name, parameter in named:
        groups.setdefault((name.startswith("encoder."), parameter.ndim >= 2), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": recipe.tower_learning_rate if in_tower else recipe.learning_rate,
            "weight_decay": recipe.weight_decay if is_matrix else 0.0,
        }
        for (in_tower, is_matrix), parameters in groups.items()
    ]


def cosine(step: int, recipe: Recipe) -> float:
    """Linear warm-up, then a cosine down to a hundredth."""
    warmup = max(1, round(recipe.warmup * recipe.steps))
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, recipe.steps - warmup))
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress))
