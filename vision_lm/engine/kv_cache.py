"""The key-value cache: one fixed block of memory, cut into slots of one token."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from vision_lm.config import TextConfig
from vision_lm.engine.pages import PAGE, pages_for

log = logging.getLogger(__name__)

# Tokens to keep unless told otherwise, on a CPU and on a GPU,
CPU_TOKENS = 16_384
GPU_TOKENS = 131_072  # what 64 sequences of 2,048 tokens need
# and no more than so much memory, but always room for one full context.
CPU_BYTES = 2 << 30
GPU_SHARE = 0.6  # of what is free once the weights are there: the rest is for activations and other people


class KVCache:
    """Keys, then values, (L, 2 Hkv, slots, hd) of `pages` pages; slot = page * PAGE + the token's place in the page.

    Heads stand outside: what is gathered of a head is one matrix then, as matrix products want it.
    """

    def __init__(self, config: TextConfig, pages: int, device: torch.device, dtype: torch.dtype) -> None:
        heads = 2 * config.num_key_value_heads
        shape = (config.num_hidden_layers, heads, pages * PAGE, config.head_dim)
        # Memory that is never written costs nothing on a CPU: the system hands it out when it is first touched.
        self.memory = torch.empty(shape, device=device, dtype=dtype)
        self.pages = pages
        self._gathered = self.memory.new_empty(0)

    @property
    def nbytes(self) -> int:
        """Of the whole cache."""
        return self.memory.nbytes

    @property
    def key(self) -> tuple[int, int]:
        """What a CUDA graph that reads the cache depends on: where it is, and how many slots it has."""
        return self.memory.data_ptr(), self.memory.shape[2]

    def slots(self, pages: Sequence[int], tokens: int) -> Tensor:
        """Where the first `tokens` tokens of a sequence with these pages are: (tokens,)."""
        return slots_of(torch.tensor(pages[: pages_for(tokens)], device=self.memory.device))[:tokens]

    def write(self, layer: int, slots: Tensor, keys_and_values: Tensor) -> None:
        """Put keys and values (n, 2 Hkv, hd) of one layer at slots (n,)."""
        self.memory[layer].index_copy_(1, slots, keys_and_values.transpose(0, 1))

    def gather(self, layer: int, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (Hkv, n, hd) of one layer at slots (n,). They stand until the next call.

        They are written over those of the last call: fresh memory costs more than the copy.
        """
        memory = self.memory[layer]
        heads, _, width = memory.shape
        size = heads * len(slots) * width
        if self._gathered.numel() < size:
            self._gathered = memory.new_empty(size)
        gathered = self._gathered[:size].view(heads, len(slots), width)
        torch.index_select(memory, 1, slots, out=gathered)
        return gathered[: heads // 2], gathered[heads // 2 :]


def slots_of(table: Tensor) -> Tensor:
    """Pages (..., P) -> their slots (..., P * PAGE)."""
    return (table[..., None] * PAGE + torch.arange(PAGE, device=table.device)).flatten(-2)


def bytes_per_token(config: TextConfig, dtype: torch.dtype) -> int:
    """Keys and values of one token in every layer."""
    return 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * dtype.itemsize


def default_cache_tokens(config: TextConfig, dtype: torch.dtype, device: torch.device) -> int:
    """Tokens to keep, unless told otherwise: see CPU_TOKENS. The weights are in the device's memory already."""
    most, room = CPU_TOKENS, CPU_BYTES
    if device.type == "cuda":
        most, room = GPU_TOKENS, int(GPU_SHARE * _free_bytes(device))
    return max(min(most, room // bytes_per_token(config, dtype)), config.max_position_embeddings)


def _free_bytes(gpu: torch.device) -> int:
    """What this process can still have, torch's own unused memory included."""
    free, _ = torch.cuda.mem_get_info(gpu)
    return free + torch.cuda.memory_reserved(gpu) - torch.cuda.memory_allocated(gpu)


def allocate_cache(config: TextConfig, pages: int, device: torch.device, dtype: torch.dtype) -> KVCache:
    """A cache of so many pages, or where memory is short of half as many, and so on, down to one full context."""
    least = pages_for(config.max_position_embeddings)
    while True:
        try:
            return KVCache(config, pages, device, dtype)
        except Exception as error:
            if not out_of_memory(error) or pages <= least:
                raise
            log.warning("no memory for a cache of %d tokens: trying half of it", pages * PAGE)
            pages = max(pages // 2, least)


def out_of_memory(error: Exception) -> bool:
    """A GPU has a type for it, a CPU only words."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "allocate memory" in str(error)
