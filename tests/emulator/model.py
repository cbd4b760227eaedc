"""A small random Phi for the kernels, and the same arithmetic in float64."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from tests.emulator.emulator import Emulator, Memory
from vision_lm.config import TextConfig
from vision_lm.engine.cuda.bucket import Rows
from vision_lm.engine.cuda.launch import Inputs, Launch, Scratch, step_launches
from vision_lm.engine.cuda.pack import PackedMatrix, PackedModel, pack
from vision_lm.engine.cuda.shape import PAGE, Bits, Shape
from vision_lm.engine.rounding import int4_groups, int8_rows

Weights = dict[str, Tensor]


def config_of(
    width: int, heads: int, kv_heads: int, ffn: int, vocab: int, layers: int, rotary: float
) -> TextConfig:
    return TextConfig(
        vocab_size=vocab,
        hidden_size=width,
        intermediate_size=ffn,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=256,
        partial_rotary_factor=rotary,
    )


PHI_1_5 = config_of(width=256, heads=4, kv_heads=4, ffn=512, vocab=301, layers=2, rotary=0.5)  # heads of 64
PHI_2 = config_of(width=160, heads=2, kv_heads=2, ffn=352, vocab=96, layers=2, rotary=0.4)  # heads of 80
GROUPED = config_of(width=128, heads=4, kv_heads=2, ffn=256, vocab=96, layers=2, rotary=0.5)  # heads of 32


def random_weights(config: TextConfig, seed: int = 0) -> Weights:
    """PhiForCausalLM's state dict, large enough that every part shows in the logits."""
    random = torch.Generator().manual_seed(seed)

    def matrix(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, generator=random) / columns**0.5

    def vector(size: int, centre: float = 0.0) -> Tensor:
        return centre + torch.randn(size, generator=random) * 0.3

    width, ffn = config.hidden_size, config.intermediate_size
    keys = config.num_key_value_heads * config.head_dim
    weights = {"model.embed_tokens.weight": torch.randn(config.vocab_size, width, generator=random)}
    for number in range(config.num_hidden_layers):
        name = f"model.layers.{number}"
        weights |= {f"{name}.input_layernorm.weight": vector(width, 1.0)}
        weights |= {f"{name}.input_layernorm.bias": vector(width)}
        sizes = {
            "q_proj": (width, width),
            "k_proj": (keys, width),
            "v_proj": (keys, width),
            "dense": (width, width),
        }
        shapes = {f"self_attn.{part}": size for part, size in sizes.items()}
        shapes |= {"mlp.fc1": (ffn, width), "mlp.fc2": (width, ffn)}
        for part, size in shapes.items():
            weights |= {f"{name}.{part}.weight": matrix(*size), f"{name}.{part}.bias": vector(size[0])}
    weights |= {
        "model.final_layernorm.weight": vector(width, 1.0),
        "model.final_layernorm.bias": vector(width),
    }
    weights |= {
        "lm_head.weight": matrix(config.vocab_size, width) * 3,
        "lm_head.bias": vector(config.vocab_size),
    }
    return weights


def as_stored(weights: Weights, dtype: torch.dtype, bits: Bits) -> Weights:
    """What the weights become in so many bits, in float64. Vectors stay float32."""

    def stored(name: str, weight: Tensor) -> Tensor:
        if weight.ndim == 1:
            return weight.double()
        if bits == 16 or "embed" in name:
            return weight.to(dtype).double()
        if bits == 8:
            codes, scales = int8_rows(weight)
            return codes.double() * scales.double()[:, None]
        codes, scales, zeros = (part.double() for part in int4_groups(weight))
        spread = [part.repeat_interleave(128, dim=1) for part in (scales, zeros)]
        return ((codes - 8) * spread[0] + spread[1])[:, : weight.shape[1]]

    return {name: stored(name, weight) for name, weight in weights.items()}


@dataclass
class Bench:
    """One model in memory, with a paged cache whose unused slots are NaN."""

    config: TextConfig
    shape: Shape
    packed: PackedModel
    truth: Weights  # float64, as stored
    inputs: Inputs
    scratch: Scratch
    cache: Tensor  # (L, 2 Hkv, slots, hd): keys, then values
    blocks: int

    @classmethod
    def of(
        cls,
        config: TextConfig,
        lengths: list[int],
        dtype: torch.dtype = torch.bfloat16,
        bits: Bits = 16,
        blocks: int = 3,
        seed: int = 0,
        weights: Weights | None = None,
        rows: int | None = None,  # of the build, where more than are live
        pages: int | None = None,
    ) -> Bench:
        live = len(lengths)
        batch = rows or next(bucket for bucket in (1, 2, 4, 8) if bucket >= live)
        shape = Shape.of(config, dtype, bits, batch)
        shape = dataclasses.replace(
            shape,
            warps=2,
            attention_warps=2,
            chunks=3,
            ring=4,
            activation_kib=2,
            attend_warps=2,
            persistent=True,
        )
        weights = weights if weights is not None else random_weights(config)
        random = torch.Generator().manual_seed(seed)
        pages = pages or max(lengths) // PAGE + 1
        order = torch.randperm(live * pages + 3, generator=random).int()
        table = torch.full((batch, pages), -1, dtype=torch.int32)
        table[:live] = order[: live * pages].reshape(live, pages)
        slots = (live * pages + 3) * PAGE
        size = (config.num_hidden_layers, 2 * config.num_key_value_heads, slots, config.head_dim)
        cache = torch.full(size, float("nan"), dtype=dtype)
        bench = cls(
            config=config,
            shape=shape,
            packed=pack(config, weights, torch.device("cpu"), dtype, bits),
            truth=as_stored(weights, dtype, bits),
            inputs=Inputs(
                ids=torch.randint(config.vocab_size, (batch,), generator=random),
                lengths=torch.tensor(lengths + [-1] * (batch - live), dtype=torch.int32),
                table=table,
                logits=torch.full((batch, config.vocab_size), float("nan")),
                next=torch.full((batch,), -1),
                logprobs=torch.full((batch,), float("nan")),
                rivals=torch.full((batch,), float("nan")),
            ),
            scratch=Scratch.of(shape, pages, blocks, torch.device("cpu")),
            cache=cache,
            blocks=blocks,
        )
        for row, length in enumerate(lengths):
            slots_of_row = bench.slots(row, length)
            filling = torch.randn(cache[:, :, slots_of_row].shape, generator=random)
            cache[:, :, slots_of_row] = filling.to(dtype)
        bench.poison()
        return bench

    def rows(self) -> Rows:
        """The live rows as the decoder is given them."""
        live = int((self.inputs.lengths >= 0).sum())
        ids, lengths, table = (
            part[:live].tolist() for part in (self.inputs.ids, self.inputs.lengths, self.inputs.table)
        )
        return Rows(ids, lengths, table)

    def slots(self, row: int, length: int) -> Tensor:
        """The cache slots of a row's first tokens."""
        positions = torch.arange(length)
        return self.inputs.table[row, positions // PAGE].long() * PAGE + positions % PAGE

    def kept(self, layer: int, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (T, Hkv, hd) at some slots, in float64."""
        keys, values = self.cache[layer][:, slots].double().transpose(0, 1).chunk(2, dim=1)
        return keys, values

    def poison(self) -> None:
        """Nothing that a step hands on may come from before it."""
        s = self.scratch
        for tensor in (s.hidden, s.queries, s.activated, s.attended, s.parts, s.best):
            tensor.fill_(float("nan"))

    def matrices(self) -> list[PackedMatrix]:
        layers = [m for layer in self.packed.layers for m in (layer.into, layer.dense, layer.fc2)]
        return [*layers, self.packed.head]

    def memory(self) -> Memory:
        constant = [self.packed.embedding, self.packed.gamma, self.packed.beta]
        constant += [one for layer in self.packed.layers for one in (layer.gamma, layer.beta)]
        for matrix in self.matrices():
            constant += [matrix.rows] if matrix.scales is None else [matrix.rows, matrix.scales]
        s, i = self.scratch, self.inputs
        variable = [s.hidden, s.queries, s.activated, s.attended, s.parts, s.best, s.counters]
        variable += [self.cache, i.next, i.logprobs, i.rivals] + ([] if i.logits is None else [i.logits])
        return Memory(constant, variable)

    def launches(self, persistent: bool = False) -> list[Launch]:
        s = self
        parts = (s.shape, s.packed, s.inputs, s.scratch, s.cache, s.blocks)
        return list(step_launches(*parts, persistent))

    def run(self, emulator: Emulator, launches: list[Launch], seed: int = 0) -> Memory:
        memory = self.memory()
        failure = emulator.run(launches, memory, seed)
        assert failure is None, failure
        return memory


# ---- float64 ----


def norm(x: Tensor, weights: Weights, name: str, eps: float) -> Tensor:
    return torch.nn.functional.layer_norm(
        x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], eps
    )


def linear(x: Tensor, weights: Weights, name: str) -> Tensor:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def rotate(heads: Tensor, position: int, config: TextConfig) -> Tensor:
    """(H, hd), by the complex numbers that RoFormer defines."""
    half = config.rotary_dim // 2
    angles = position * config.rope_theta ** (-torch.arange(half, dtype=torch.float64) / half)
    turned = torch.complex(heads[:, :half], heads[:, half : 2 * half]) * torch.polar(
        torch.ones_like(angles), angles
    )
    return torch.cat([turned.real, turned.imag, heads[:, 2 * half :]], dim=1)


def project64(
    config: TextConfig, weights: Weights, number: int, hidden: Tensor, position: int
) -> tuple[Tensor, ...]:
    """One row's (Dt,) -> queries (Hq, hd), key and value (Hkv, hd), gelu of fc1 (F,)."""
    name = f"model.layers.{number}"
    normed = norm(hidden, weights, f"{name}.input_layernorm", config.layer_norm_eps)
    q, k, v = (
        linear(normed, weights, f"{name}.self_attn.{p}_proj").reshape(-1, config.head_dim) for p in "qkv"
    )
    fc1 = linear(normed, weights, f"{name}.mlp.fc1")
    activated = 0.5 * fc1 * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (fc1 + 0.044715 * fc1**3)))
    return rotate(q, position, config), rotate(k, position, config), v, activated


def attend64(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """(Hq, hd) over (T, Hkv, hd) -> (Hq hd,)."""
    heads, size = queries.shape
    shared = heads // keys.shape[1]
    keys, values = (kv.repeat_interleave(shared, dim=1) for kv in (keys, values))
    scores = torch.einsum("hd,thd->ht", queries, keys) / size**0.5
    return torch.einsum("ht,thd->hd", scores.softmax(1), values).flatten()


def mix64(weights: Weights, number: int, hidden: Tensor, attended: Tensor, activated: Tensor) -> Tensor:
    name = f"model.layers.{number}"
    dense = linear(attended, weights, f"{name}.self_attn.dense")
    return hidden + dense + linear(activated, weights, f"{name}.mlp.fc2")


def head64(config: TextConfig, weights: Weights, hidden: Tensor) -> Tensor:
    return linear(norm(hidden, weights, "model.final_layernorm", config.layer_norm_eps), weights, "lm_head")


def step64(bench: Bench) -> Tensor:
    """The logits (live rows, V) of the bench's next step, from a cache that the step has not touched yet.

    The new token's key and value are rounded as the cache rounds them; all else is float64.
    """
    config, weights, rows = bench.config, bench.truth, []
    for row, length in enumerate(bench.inputs.lengths.tolist()):
        if length < 0:
            continue
        hidden = weights["model.embed_tokens.weight"][bench.inputs.ids[row]]
        for number in range(config.num_hidden_layers):
            queries, key, value, activated = project64(config, weights, number, hidden, length)
            slots = bench.slots(row, length)
            keys, values = (
                torch.cat([kept, new[None].to(bench.cache.dtype).double()])
                for kept, new in zip(bench.kept(number, slots), (key, value), strict=True)
            )
            hidden = mix64(weights, number, hidden, attend64(queries, keys, values), activated)
        rows.append(head64(config, weights, hidden))
    return torch.stack(rows)
