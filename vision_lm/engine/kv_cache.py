"""The key-value cache: one fixed block of memory, cut into slots of one token."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vision_lm.config import TextConfig
from vision_lm.engine.pages import PAGE, pages_for


class KVCache:
    """Keys and values (L, Hkv, slots, hd) of `pages` pages; slot = page * PAGE + the token's place in the page.

    Heads stand outside: what is gathered of a head is one matrix then, as matrix products want it.
    """

    def __init__(self, config: TextConfig, pages: int, device: torch.device, dtype: torch.dtype) -> None:
        shape = (config.num_hidden_layers, config.num_key_value_heads, pages * PAGE, config.head_dim)
        # Memory that is never written costs nothing on a CPU: the system hands it out when it is first touched.
        self.keys = torch.empty(shape, device=device, dtype=dtype)
        self.values = torch.empty(shape, device=device, dtype=dtype)
        self.pages = pages

    @property
    def nbytes(self) -> int:
        """Of the whole cache."""
        return self.keys.nbytes + self.values.nbytes

    def slots(self, pages: Sequence[int], tokens: int) -> Tensor:
        """Where the first `tokens` tokens of a sequence with these pages are: (tokens,)."""
        return slots_of(torch.tensor(pages[: pages_for(tokens)], device=self.keys.device))[:tokens]


def slots_of(table: Tensor) -> Tensor:
    """Pages (..., P) -> their slots (..., P * PAGE)."""
    return (table[..., None] * PAGE + torch.arange(PAGE, device=table.device)).flatten(-2)


def bytes_per_token(config: TextConfig, dtype: torch.dtype) -> int:
    """Keys and values of one token in every layer."""
    return 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * dtype.itemsize
