"""Tokens that are given instead of chosen: the engine tells how likely each of them was."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Given:
    """Where one request stands in the tokens that it is to say."""

    def __init__(self, ids: Sequence[int], rows: int) -> None:
        """`rows`: V, the embedding's rows."""
        self._ids, self._rows, self._said = ids, rows, 0

    def mask(self) -> Tensor:
        """Which tokens may come next: (V,), bool, on the CPU. Exactly one."""
        allowed = torch.zeros(self._rows, dtype=torch.bool)
        allowed[self._ids[self._said]] = True
        return allowed

    def accept(self, token: int) -> None:
        self._said += 1

    @property
    def done(self) -> bool:
        return self._said == len(self._ids)
