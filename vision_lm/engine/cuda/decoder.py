"""Decoding steps on a GPU by the CUDA kernels: one graph a batch bucket, cuBLAS for large batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from vision_lm.config import TextConfig
from vision_lm.engine.cuda.bucket import Bucket, Draws
from vision_lm.engine.cuda.compile import GpuKernels
from vision_lm.engine.cuda.errors import CudaDecoderError
from vision_lm.engine.cuda.large import LargeBatch
from vision_lm.engine.cuda.launch import Kernels
from vision_lm.engine.cuda.pack import pack
from vision_lm.engine.cuda.prefill import Prefill
from vision_lm.engine.cuda.shape import BUCKETS, PAGE, Bits, Shape
from vision_lm.engine.kv_cache import KVCache

LARGE = 16  # rows from which cuBLAS reads a 16-bit weight no more often than it must


@dataclass(frozen=True)
class Limits:
    """Of one GPU."""

    blocks: int  # one to a multiprocessor
    shared: int  # bytes a block may have

    @classmethod
    def of(cls, device: torch.device) -> Limits:
        properties = torch.cuda.get_device_properties(device)
        least = properties.shared_memory_per_block
        return cls(
            properties.multi_processor_count, getattr(properties, "shared_memory_per_block_optin", least)
        )


class CudaDecoder:
    """Phi's next-token logits from a paged cache, on one GPU.

    Whatever is wrong with a GPU, a driver or a shape is a CudaDecoderError when the decoder is made: every bucket is
    compiled then, or read from disk.
    """

    def __init__(
        self,
        config: TextConfig,
        weights: Mapping[str, Tensor],
        device: torch.device,
        dtype: torch.dtype,
        bits: Bits = 16,
        kernels: Callable[[Shape, torch.device], Kernels] = GpuKernels,
        limits: Limits | None = None,
    ) -> None:
        """`weights` is PhiForCausalLM's state dict, by its own names."""
        if limits is None:
            if device.type != "cuda" or not torch.cuda.is_available():
                raise CudaDecoderError(f"the CUDA kernels need an NVIDIA GPU; the device is {device}")
            limits = Limits.of(device)
        self.config, self.device, self.dtype, self.bits = config, device, dtype, bits
        pages = -(-config.max_position_embeddings // PAGE)
        # The same warps in every bucket: a LayerNorm's sums are theirs, and so a row's bits are any batch's.
        most = Shape.of(config, dtype, bits, BUCKETS[-1]).fitting(limits.blocks, limits.shared)
        shapes = [most.with_batch(batch).fitting(limits.blocks, limits.shared) for batch in BUCKETS]
        built = [(shape, kernels(shape, device)) for shape in shapes]
        self.model = model = pack(config, weights, device, dtype, bits)
        self._buckets = [Bucket(shape, model, ready, pages, limits.blocks) for shape, ready in built]
        shape, ready = built[0]
        self._large = LargeBatch(shape, model, ready, pages, limits.blocks) if bits == 16 else None
        self.prefill = Prefill(shape, model, ready) if bits == 16 else None  # else it is torch's

    @torch.inference_mode()
    def decode(self, ids: Tensor, lengths: Tensor, table: Tensor, cache: KVCache) -> Tensor:
        """One more token for each of B sequences -> the logits (B, V) after it, float32.

        ids (B,) int64; lengths (B,) int32, the tokens already in the cache; table (B, P) int32, each sequence's pages,
        the new token's included.
        """
        if self._large is not None and len(ids) >= LARGE:
            return self._large.logits(ids, lengths, table, cache)
        return torch.cat(
            [
                self._bucket(len(some)).logits(some, their_lengths, their_pages, cache)
                for some, their_lengths, their_pages in _parts(ids, lengths, table)
            ]
        )

    @torch.inference_mode()
    def tokens(
        self, ids: Tensor, lengths: Tensor, table: Tensor, cache: KVCache, draws: Draws | None = None
    ) -> tuple[Tensor, Tensor]:
        """The same step -> the next tokens (B,) and their log-probabilities (B,); no logits leave the device.

        Without `draws` the likeliest ones. A row's log-probability is the model's own, whatever the settings.
        """
        if self._large is not None and len(ids) >= LARGE:
            return self._large.tokens(ids, lengths, table, cache, draws)
        tensors = (
            (ids, lengths, table) if draws is None else (ids, lengths, table, draws.settings, draws.top_k)
        )
        found = [
            self._bucket(len(some)).tokens(
                some, their_lengths, their_pages, cache, Draws(*theirs) if theirs else None
            )
            for some, their_lengths, their_pages, *theirs in _parts(*tensors)
        ]
        tokens, logprobs = zip(*found, strict=True)
        return torch.cat(tokens), torch.cat(logprobs)

    def _bucket(self, rows: int) -> Bucket:
        return next(bucket for size, bucket in zip(BUCKETS, self._buckets, strict=True) if size >= rows)


def _parts(*tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """Rows in parts that a bucket can take."""
    return list(zip(*(tensor.split(BUCKETS[-1]) for tensor in tensors), strict=True))
