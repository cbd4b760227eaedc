"""Which decoder a machine gets: our kernels on a GPU that can run them, and torch everywhere else."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from vision_lm.config import TextConfig
from vision_lm.engine.cpu.decoder import CpuDecoder
from vision_lm.engine.cpu.errors import CpuKernelError
from vision_lm.engine.cuda.bucket import Rows
from vision_lm.engine.cuda.compile import GpuKernels
from vision_lm.engine.cuda.decoder import CudaDecoder, Limits
from vision_lm.engine.cuda.errors import CudaDecoderError
from vision_lm.engine.cuda.launch import Kernels
from vision_lm.engine.cuda.shape import Bits, Shape
from vision_lm.engine.kv_cache import KVCache, out_of_memory
from vision_lm.engine.quantize import Mode
from vision_lm.engine.sampling import Token, token_or_error
from vision_lm.engine.torch_decoder import Chunk, TorchDecoder
from vision_lm.errors import RequestError, VisionLMError

log = logging.getLogger(__name__)

BITS: dict[Mode, Bits] = {None: 16, "int8": 8, "int4": 4}


class KernelDecoder(TorchDecoder):
    """Both by the CUDA kernels and cuBLAS over one copy of the weights; int8 and int4 ones prefill in torch, from a second copy."""

    def __init__(self, kernels: CudaDecoder, weights: Mapping[str, Tensor], quantize: Mode = None) -> None:
        """`kernels` and torch compute with the same weights: PhiForCausalLM's state dict."""
        self.kernels = kernels
        if kernels.prefill is None:
            super().__init__(kernels.config, weights, kernels.device, kernels.dtype, quantize)
        else:  # all that reads TorchDecoder's weights is replaced: they are not made
            self.config, self.device, self.dtype = kernels.config, kernels.device, kernels.dtype
            self.embedding = kernels.model.embedding

    @torch.inference_mode()
    def prefill(self, embeddings: Tensor, chunks: Sequence[Chunk], cache: KVCache) -> Tensor:
        if self.kernels.prefill is None:
            return super().prefill(embeddings, chunks, cache)
        return self.kernels.prefill(embeddings, chunks, cache)

    @torch.inference_mode()
    def decode(
        self, ids: Sequence[int], lengths: Sequence[int], pages: Sequence[Sequence[int]], cache: KVCache
    ) -> Tensor:
        return self.kernels.decode(Rows(ids, lengths, pages), cache)

    def decode_greedy(
        self, ids: Sequence[int], lengths: Sequence[int], pages: Sequence[Sequence[int]], cache: KVCache
    ) -> list[Token | VisionLMError]:
        return list(map(token_or_error, *self.kernels.tokens(Rows(ids, lengths, pages), cache)))


def make_decoder(
    config: TextConfig,
    weights: Mapping[str, Tensor],
    device: torch.device,
    dtype: torch.dtype,
    quantize: Mode = None,
) -> TorchDecoder:
    """The fastest decoder for this device. Where the kernels fail, one line in the log says why.

    Raises RequestError where the device has no memory for the weights.
    """
    try:
        decoder: TorchDecoder | None = None
        # float32 is what the CUDA kernels do not compute in
        if device.type == "cuda" and quantize in BITS and dtype != torch.float32:
            decoder = kernel_decoder(config, weights, device, dtype, quantize)
        if device.type == "cpu":
            decoder = cpu_decoder(config, weights, dtype, quantize)
        return decoder or TorchDecoder(config, weights, device, dtype, quantize)
    except Exception as error:
        if not out_of_memory(error):
            raise
        count = sum(tensor.numel() for tensor in weights.values())
        fewer = "" if quantize else "give quantize int8 or int4, "
        raise RequestError(
            f"{device} has no memory for a language model of {count:,} weights in {quantize or str(dtype)[6:]}; "
            f"{fewer}free some, or choose another device"
        ) from None


def kernel_decoder(
    config: TextConfig,
    weights: Mapping[str, Tensor],
    device: torch.device,
    dtype: torch.dtype,
    quantize: Mode = None,
    kernels: Callable[[Shape, torch.device], Kernels] = GpuKernels,
    limits: Limits | None = None,
) -> KernelDecoder | None:
    """The CUDA kernels' decoder, tried out, or None after one line in the log that says why it cannot be had.

    `kernels` and `limits`: what stands for a GPU where there is none.
    """
    try:
        cuda = CudaDecoder(config, weights, device, dtype, BITS[quantize], kernels, limits)
        cuda.try_out()
        return KernelDecoder(cuda, weights, quantize)
    except CudaDecoderError as error:
        log.warning("%s; decoding in torch", error)
    except Exception as error:
        if not out_of_memory(error):
            raise
        log.warning("no memory for the CUDA kernels and their copy of the weights; decoding in torch")
    return None


def cpu_decoder(
    config: TextConfig, weights: Mapping[str, Tensor], dtype: torch.dtype, quantize: Mode = None
) -> CpuDecoder | None:
    """The CPU kernels' decoder, or None after one line in the log that says why it cannot be had."""
    try:
        return CpuDecoder(config, weights, dtype, quantize)
    except CpuKernelError as error:
        log.warning("%s; decoding in torch, which is slower", error)
    return None
