"""Decoding steps on a GPU by the CUDA kernels: one graph a batch bucket, cuBLAS for large batches."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from vision_lm.config import TextConfig
from vision_lm.engine.cuda.bucket import Bucket, Draws, Rows
from vision_lm.engine.cuda.compile import GpuKernels, in_short
from vision_lm.engine.cuda.errors import CudaDecoderError
from vision_lm.engine.cuda.exchange import Found
from vision_lm.engine.cuda.large import LargeBatch
from vision_lm.engine.cuda.launch import Kernels
from vision_lm.engine.cuda.pack import pack
from vision_lm.engine.cuda.prefill import Prefill
from vision_lm.engine.cuda.shape import BUCKETS, PAGE, WARPS, Bits, Shape
from vision_lm.engine.kv_cache import KVCache
from vision_lm.engine.torch_decoder import Chunk

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
        shapes = bucket_shapes(Shape.of(config, dtype, bits), limits)
        built = [(shape, kernels(shape, device)) for shape in shapes]
        self.model = model = pack(config, weights, device, dtype, bits)
        self._buckets = [Bucket(shape, model, ready, pages, limits.blocks) for shape, ready in built]
        shape, ready = built[0]
        self._large = LargeBatch(shape, model, ready, pages, limits.blocks) if bits == 16 else None
        self.prefill = Prefill(shape, model, ready) if bits == 16 else None  # else it is torch's

    @torch.inference_mode()
    def try_out(self) -> None:
        """Every bucket's step once, and prefill: kernels can be built and yet not start. Raises CudaDecoderError."""
        rows = Rows([0] * LARGE, [0] * LARGE, [[page] for page in range(LARGE)])
        try:
            cache = KVCache(self.config, LARGE, self.device, self.dtype)
            for bucket in self._buckets:
                bucket.try_out(rows.part(slice(bucket.rows)), cache)
            if self._large is not None:
                self._large.try_out(rows, cache)
            if self.prefill is not None:
                self.prefill(self.model.embedding[:1], [Chunk(0, 1, cache.slots([0], 1), True)], cache).cpu()
        except CudaDecoderError:
            raise
        except Exception as error:  # torch's, when it waits for the device
            raise CudaDecoderError(f"the CUDA kernels do not run ({in_short(error)})") from error

    @torch.inference_mode()
    def decode(self, rows: Rows, cache: KVCache) -> Tensor:
        """One more token for each of B sequences -> the logits (B, V) after it, float32."""
        if self._large is not None and len(rows) >= LARGE:
            return self._large.logits(rows, cache)
        parts = [self._bucket(part).logits(rows.part(part), cache) for part in self._parts(len(rows))]
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    @torch.inference_mode()
    def tokens(self, rows: Rows, cache: KVCache, draws: Draws | None = None) -> Found:
        """The same step -> the next tokens; no logits leave the device. Without `draws` the likeliest ones."""
        if self._large is not None and len(rows) >= LARGE:
            return self._large.tokens(rows, cache, draws)
        tokens, logprobs, rivals = Found([], [], [])
        for part in self._parts(len(rows)):
            drawn = None if draws is None else draws.part(part)
            more = self._bucket(part).tokens(rows.part(part), cache, drawn)
            tokens += more.tokens
            logprobs += more.logprobs
            rivals += more.rivals
        return Found(tokens, logprobs, rivals)

    def _bucket(self, part: slice) -> Bucket:
        return next(bucket for bucket in self._buckets if bucket.rows >= part.stop - part.start)

    def _parts(self, rows: int) -> list[slice]:
        """Rows in parts that a bucket can take."""
        most = self._buckets[-1].rows
        return [slice(start, min(start + most, rows)) for start in range(0, rows, most)]


def bucket_shapes(one_row: Shape, limits: Limits) -> list[Shape]:
    """The shapes of all buckets that this GPU has the memory for, with the same warps: a row's bits depend on them."""

    def fitting(rows: int, choice: tuple[int, int, int]) -> Shape:
        # One kernel a step beat the chain on an H100; with more rows it runs out of registers.
        shape = dataclasses.replace(one_row, batch=rows, persistent=rows == 1)
        return shape.fitting(limits.blocks, limits.shared, (choice,))

    for count, choice in itertools.product(range(len(BUCKETS), 0, -1), WARPS):
        with contextlib.suppress(CudaDecoderError):  # fewer rows need less
            return [fitting(rows, choice) for rows in BUCKETS[:count]]
    return [fitting(1, WARPS[-1])]  # raises
