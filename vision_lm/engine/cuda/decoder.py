"""Decoding steps on a GPU by the CUDA kernels: one graph a batch bucket, cuBLAS for large batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from vision_lm.config import TextConfig
from vision_lm.engine.cuda.compile import GpuKernels
from vision_lm.engine.cuda.errors import CudaDecoderError
from vision_lm.engine.cuda.large import LargeBatch
from vision_lm.engine.cuda.launch import Inputs, Kernels, Scratch, step_launches
from vision_lm.engine.cuda.pack import PackedModel, pack
from vision_lm.engine.cuda.shape import BUCKETS, PAGE, Bits, Shape
from vision_lm.engine.kv_cache import KVCache

LARGE = 16  # rows from which cuBLAS reads a 16-bit weight no more often than it must
PADDING = -1  # the length of an empty row


@dataclass(frozen=True)
class Limits:
    """Of one GPU."""

    blocks: int  # one to a multiprocessor
    shared: int  # bytes a block may have

    @classmethod
    def of(cls, device: torch.device) -> Limits:
        properties = torch.cuda.get_device_properties(device)
        return cls(properties.multi_processor_count, properties.shared_memory_per_block_optin)


class Bucket:
    """The steps of up to `shape.batch` rows, at fixed addresses."""

    def __init__(self, shape: Shape, model: PackedModel, kernels: Kernels, pages: int, blocks: int) -> None:
        device, batch = model.embedding.device, shape.batch
        self._shape, self._model, self._kernels, self._blocks = shape, model, kernels, blocks
        self._ids = torch.zeros(batch, dtype=torch.int64, device=device)
        self._lengths = torch.full((batch,), PADDING, dtype=torch.int32, device=device)
        self._table = torch.zeros(batch, pages, dtype=torch.int32, device=device)
        self._logits = torch.empty(batch, shape.vocab, dtype=torch.float32, device=device)
        self._next = torch.zeros(batch, dtype=torch.int64, device=device)
        self._logprobs = torch.zeros(batch, dtype=torch.float32, device=device)
        self._scratch = Scratch.of(shape, pages, blocks, device)
        self._graphs: dict[tuple[int, int, bool], torch.cuda.CUDAGraph] = {}

    def decode(self, ids: Tensor, lengths: Tensor, table: Tensor, cache: KVCache) -> Tensor:
        """-> logits (n, V), the caller's own."""
        self._fill(ids, lengths, table)
        self._step(cache, greedy=False)
        return self._logits[: len(ids)].clone()

    def greedy(self, ids: Tensor, lengths: Tensor, table: Tensor, cache: KVCache) -> tuple[Tensor, Tensor]:
        """-> the likeliest tokens (n,) and their log-probabilities (n,)."""
        self._fill(ids, lengths, table)
        self._step(cache, greedy=True)
        return self._next[: len(ids)].clone(), self._logprobs[: len(ids)].clone()

    def _fill(self, ids: Tensor, lengths: Tensor, table: Tensor) -> None:
        rows, pages = table.shape
        self._ids[:rows].copy_(ids, non_blocking=True)
        self._lengths[:rows].copy_(lengths, non_blocking=True)
        self._lengths[rows:].fill_(PADDING)
        self._table[:rows, :pages].copy_(table, non_blocking=True)

    def _step(self, cache: KVCache, greedy: bool) -> None:
        if self._ids.device.type != "cuda":
            return self._launch(cache, greedy)
        key = (cache.keys.data_ptr(), cache.values.data_ptr(), greedy)
        if key not in self._graphs:
            self._launch(cache, greedy)  # loads the kernels, which capturing must not
            torch.cuda.current_stream(self._ids.device).synchronize()
            self._graphs[key] = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graphs[key]):
                self._launch(cache, greedy)
        self._graphs[key].replay()  # after a first launch it writes the same again

    def _launch(self, cache: KVCache, greedy: bool) -> None:
        logits = None if greedy else self._logits
        inputs = Inputs(self._ids, self._lengths, self._table, logits, self._next, self._logprobs)
        launches = step_launches(
            self._shape, self._model, inputs, self._scratch, cache.keys, cache.values, self._blocks
        )
        self._kernels.run(list(launches))


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
        shapes = [
            Shape.of(config, dtype, bits, batch).fitting(limits.blocks, limits.shared) for batch in BUCKETS
        ]
        built = [(shape, kernels(shape, device)) for shape in shapes]
        model = pack(config, weights, device, dtype, bits)
        self._buckets = [Bucket(shape, model, ready, pages, limits.blocks) for shape, ready in built]
        shape, ready = built[0]
        self._large = LargeBatch(shape, model, ready, limits.blocks) if bits == 16 else None

    @torch.inference_mode()
    def decode(self, ids: Tensor, lengths: Tensor, table: Tensor, cache: KVCache) -> Tensor:
        """One more token for each of B sequences -> the logits (B, V) after it, float32.

        ids (B,) int64; lengths (B,) int32, the tokens already in the cache; table (B, P) int32, each sequence's pages,
        the new token's included.
        """
        if self._large is not None and len(ids) >= LARGE:
            return self._large.decode(ids, lengths, table, cache)
        return torch.cat(
            [
                self._bucket(len(part)).decode(part, *rest, cache)
                for part, *rest in _parts(ids, lengths, table)
            ]
        )

    @torch.inference_mode()
    def greedy(self, ids: Tensor, lengths: Tensor, table: Tensor, cache: KVCache) -> tuple[Tensor, Tensor]:
        """The same step -> the likeliest tokens (B,) and their log-probabilities (B,), all on the device."""
        if self._large is not None and len(ids) >= LARGE:
            best = self._large.decode(ids, lengths, table, cache).log_softmax(-1).max(-1)
            return best.indices, best.values
        found = [
            self._bucket(len(part)).greedy(part, *rest, cache) for part, *rest in _parts(ids, lengths, table)
        ]
        tokens, logprobs = zip(*found, strict=True)
        return torch.cat(tokens), torch.cat(logprobs)

    def _bucket(self, rows: int) -> Bucket:
        return next(bucket for size, bucket in zip(BUCKETS, self._buckets, strict=True) if size >= rows)


def _parts(*tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """Rows in parts that a bucket can take."""
    return list(zip(*(tensor.split(BUCKETS[-1]) for tensor in tensors), strict=True))
