"""Phi on a CPU: prefill in torch with the kernels' linear layers, a decoding step in one call of C++."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from vision_lm.config import TextConfig
from vision_lm.engine.cpu.errors import CpuKernelError
from vision_lm.engine.cpu.library import (
    KINDS,
    Batch,
    Layer,
    Matrix,
    Model,
    Norm,
    Team,
    address,
    layers_array,
)
from vision_lm.engine.cpu.linear import STEP, NativeLinear
from vision_lm.engine.kv_cache import KVCache
from vision_lm.engine.quantize import Linear, Mode
from vision_lm.engine.rounding import GROUP
from vision_lm.engine.torch_decoder import TorchDecoder

HEADS = (16, 32, 48, 64, 80, 96, 128)  # sizes that the kernels are compiled for


class CpuDecoder(TorchDecoder):
    """The torch decoder with its decoding step replaced."""

    def __init__(
        self,
        config: TextConfig,
        weights: Mapping[str, Tensor],
        dtype: torch.dtype,
        quantize: Mode = None,
        team: Team | None = None,
    ) -> None:
        """`team`: of as many threads as torch has, unless given.

        Raises CpuKernelError for a shape that the kernels do not know, or where they cannot be built.
        """
        if config.head_dim not in HEADS:
            raise CpuKernelError(f"the CPU kernels have no heads of {config.head_dim}, only of {HEADS}")
        step = GROUP if quantize == "int4" else STEP
        if config.hidden_size % step or config.intermediate_size % step:
            raise CpuKernelError(
                f"the CPU kernels need widths of whole {step}s, not {config.hidden_size} and {config.intermediate_size}"
            )
        self.team = team or Team.start(torch.get_num_threads())
        super().__init__(config, weights, torch.device("cpu"), dtype, quantize)
        self._kept: list[Tensor] = []  # what C++ has the addresses of, beside the layers
        self._decoder = self.team.decoder(self._model())

    def _linear(self, weight: Tensor, bias: Tensor, quantize: Mode) -> NativeLinear:
        return NativeLinear.pack(self.team, weight, bias, quantize, self.dtype)

    def _model(self) -> Model:
        config = self.config
        layers = [
            Layer(norm=self._norm(*layer.norm), into=_matrix(layer.into), out=_matrix(layer.out))
            for layer in self.layers
        ]
        return Model(
            layers=layers_array(layers),
            count=len(layers),
            width=config.hidden_size,
            heads=config.num_attention_heads,
            key_heads=config.num_key_value_heads,
            head_width=config.head_dim,
            turned=config.rotary_dim,
            norm=self._norm(*self.final_norm),
            head=_matrix(self.head),
            embedding=self._address(self.embedding),
            embedding_kind=KINDS[self.dtype],
            epsilon=config.layer_norm_eps,
            rotary=self._address(self.rotary.float()),
            positions=config.max_position_embeddings,
        )

    def _norm(self, weight: Tensor, bias: Tensor) -> Norm:
        return Norm(self._address(weight.float()), self._address(bias.float()))

    def _address(self, tensor: Tensor) -> object:
        self._kept.append(tensor.contiguous())
        return address(self._kept[-1])

    @torch.inference_mode()
    def decode(
        self, ids: Sequence[int], lengths: Sequence[int], pages: Sequence[Sequence[int]], cache: KVCache
    ) -> Tensor:
        width = max(map(len, pages))
        table = torch.tensor(
            [[*row, *[0] * (width - len(row))] for row in pages], dtype=torch.int32
        )  # (B, P)
        tokens, kept = torch.tensor(ids), torch.tensor(lengths, dtype=torch.int32)
        logits = torch.empty(len(ids), self.config.vocab_size)
        self._decoder.step(
            Batch(
                rows=len(ids),
                table_width=width,
                ids=address(tokens),
                lengths=address(kept),
                table=address(table),
                cache=address(cache.memory),
                slots=cache.memory.shape[2],
                cache_kind=KINDS[cache.memory.dtype],
                logits=address(logits),
            )
        )
        return logits


def _matrix(linear: Linear) -> Matrix:
    assert isinstance(linear, NativeLinear)  # `_linear` made it
    return linear.matrix
