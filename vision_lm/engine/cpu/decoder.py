"""Phi on a CPU: a step in one call of C++; with tiles (AMX) prompts in 16 bits by torch, with the kernels' linear layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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
from vision_lm.engine.pages import PAGE
from vision_lm.engine.quantize import Linear, Mode
from vision_lm.engine.rounding import GROUP
from vision_lm.engine.torch_decoder import Chunk, TorchDecoder

HEADS = (16, 32, 48, 64, 80, 96, 128)  # sizes that the kernels are compiled for


class CpuDecoder(TorchDecoder):
    """The torch decoder with its steps replaced."""

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
        # With tiles one product in 16 bits takes half of the time of these kernels' two, and rounds prompts otherwise than steps.
        self._torch_prefills = dtype != torch.float32 and self.team.tiles
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
    def prefill(self, embeddings: Tensor, chunks: Sequence[Chunk], cache: KVCache) -> Tensor:
        if self._torch_prefills:
            return super().prefill(embeddings, chunks, cache)
        counts = torch.tensor([chunk.count for chunk in chunks])
        positions = torch.cat(
            [torch.arange(chunk.start, chunk.start + chunk.count) for chunk in chunks]
        )  # (N,)
        prefixes = torch.tensor([chunk.prefix for chunk in chunks]).repeat_interleave(counts)
        ends = counts.cumsum(0) - 1
        return self._step(
            Tokens(
                embeddings=embeddings.float().contiguous(),
                sequences=torch.arange(len(chunks)).repeat_interleave(counts),
                positions=positions,
                seen=torch.where(positions < prefixes, prefixes, positions + 1),
                pages=[(chunk.slots[::PAGE] // PAGE).tolist() for chunk in chunks],
                last=ends[torch.tensor([chunk.complete for chunk in chunks])],
            ),
            cache,
        )

    @torch.inference_mode()
    def decode(
        self, ids: Sequence[int], lengths: Sequence[int], pages: Sequence[Sequence[int]], cache: KVCache
    ) -> Tensor:
        positions, every = torch.tensor(lengths), torch.arange(len(ids))
        return self._step(
            Tokens(None, every, positions, positions + 1, pages, every, torch.tensor(ids)), cache
        )

    def _step(self, tokens: Tokens, cache: KVCache) -> Tensor:
        """Keys and values into the cache, and the logits (R, V)."""
        width = max(map(len, tokens.pages))
        whole = [[*row, *[0] * (width - len(row))] for row in tokens.pages]  # (B, P)
        table, sequences, positions, seen, last = (
            torch.as_tensor(part, dtype=torch.int32)
            for part in (whole, tokens.sequences, tokens.positions, tokens.seen, tokens.last)
        )
        logits = torch.empty(len(last), self.config.vocab_size)
        self._decoder.step(
            Batch(
                rows=len(positions),
                logit_rows=len(last),
                table_width=width,
                together=tokens.ids is None,
                ids=None if tokens.ids is None else address(tokens.ids),
                embeddings=None if tokens.embeddings is None else address(tokens.embeddings),
                sequences=address(sequences),
                positions=address(positions),
                seen=address(seen),
                table=address(table),
                cache=address(cache.memory),
                slots=cache.memory.shape[2],
                cache_kind=KINDS[cache.memory.dtype],
                last=address(last),
                logits=address(logits),
            )
        )
        return logits


@dataclass(frozen=True)
class Tokens:
    """N tokens of B sequences that are computed together."""

    embeddings: Tensor | None  # float32 (N, Dt), or
    sequences: Tensor  # (N,): which of the B
    positions: Tensor  # (N,)
    seen: Tensor  # (N,): how many tokens of its sequence each sees
    pages: Sequence[Sequence[int]]  # of each sequence, those of all its tokens included
    last: Tensor  # (R,): the tokens after which logits are wanted
    ids: Tensor | None = None  # (N,)


def _matrix(linear: Linear) -> Matrix:
    assert isinstance(linear, NativeLinear)  # `_linear` made it
    return linear.matrix
