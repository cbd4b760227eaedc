"""How the next token is chosen, and what a caller may ask for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import torch
from torch import Tensor

from vision_lm.errors import RequestError, VisionLMError


@dataclass(frozen=True)
class Sampling:
    """One request's settings. Raises RequestError for a value that makes no sense."""

    max_tokens: int
    temperature: float = 0.0  # 0 is greedy
    top_p: float = 1.0  # choose among the likeliest tokens that together have this probability
    top_k: int | None = None  # and among no more than so many
    seed: int | None = None  # the same seed gives the same answer, in any batch; None gives another each time
    stop_ids: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        _check("max_tokens", self.max_tokens, _is_int(self.max_tokens, 1), "an integer of at least 1")
        _check(
            "temperature",
            self.temperature,
            _is_number(self.temperature, 0),
            "0 (greedy) or a number above it",
        )
        positive = _is_number(self.top_p, 0) and 0 < self.top_p <= 1
        _check("top_p", self.top_p, positive, "a number above 0 and up to 1")
        _check(
            "top_k",
            self.top_k,
            self.top_k is None or _is_int(self.top_k, 1),
            "an integer of at least 1, or None",
        )
        _check(
            "seed", self.seed, self.seed is None or _is_int(self.seed, 0), "an integer of at least 0, or None"
        )


class Options(TypedDict, total=False):
    """What a caller may set of a `Sampling`; what stops an answer is the model's own business."""

    max_tokens: int
    temperature: float
    top_p: float
    top_k: int | None
    seed: int | None


@torch.inference_mode()
def choose(
    logits: Tensor, settings: Sequence[Sampling], draws: Sequence[float]
) -> tuple[list[int], list[float]]:
    """The next token of each row of logits (B, V), and its log-probability, untempered.

    `draws` holds a number in [0, 1) for each row: randomness comes from the request, never from the batch.
    """
    log_probs = logits.log_softmax(-1)  # (B, V)
    chosen = log_probs.argmax(-1)  # (B,)
    for row, (sampling, draw) in enumerate(zip(settings, draws, strict=True)):
        if sampling.temperature > 0:
            chosen[row] = _sample(logits[row], sampling, draw)
    values = log_probs.gather(-1, chosen[:, None])[:, 0].tolist()
    if not all(map(math.isfinite, values)):
        raise VisionLMError(
            "the model's output is not a number; its weights are damaged, or its dtype is too narrow"
        )
    return chosen.tolist(), values


def _sample(logits: Tensor, sampling: Sampling, draw: float) -> int:
    """One token of logits (V,): the first at which the cumulative probability of the kept tokens passes `draw`."""
    ids: Tensor | None = None
    if sampling.top_k is not None or sampling.top_p < 1:  # only then the order of the tokens matters
        logits, ids = logits.topk(min(sampling.top_k or len(logits), len(logits)))  # likeliest first
    probs = (logits.double() / sampling.temperature).softmax(-1)
    if sampling.top_p < 1:
        likelier = probs.cumsum(-1) - probs
        probs = probs * (likelier < sampling.top_p)
    sums = probs.cumsum(-1)
    total = float(sums[-1])
    place = int(torch.searchsorted(sums, min(draw * total, math.nextafter(total, 0)), right=True))
    return place if ids is None else int(ids[place])


def _is_int(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_number(value: Any, least: float) -> bool:
    return (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and math.isfinite(value)
        and value >= least
    )


def _check(name: str, value: Any, ok: bool, allowed: str) -> None:
    if not ok:
        raise RequestError(f"{name} is {str(value)[:40]!r}; give {allowed}")
