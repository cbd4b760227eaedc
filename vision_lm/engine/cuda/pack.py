"""Phi's state dict -> the tensors that the kernels read.

Rows that the kernels finish together lie together: rotary dimension d beside d + rotary/2 in q and k, then v and
fc1. A row's weights are contiguous, so a warp's 16-byte reads cover 512 bytes of it at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from vision_lm.config import TextConfig
from vision_lm.engine.cuda.shape import TILE, Bits
from vision_lm.engine.rounding import int4_groups, int8_rows


@dataclass(frozen=True)
class PackedMatrix:
    """A weight (N, K), N in whole tiles."""

    rows: Tensor  # 16 bits: (N, K) of the dtype; 8: (N, K) uint8, 128 is 0; 4: (N, K/2) uint8, 8 is 0, see `pack_nibbles`
    scales: Tensor | None  # 8 bits: (N,) float32; 4: (N/2, K/128, 4) bfloat16; 16: none
    bias: Tensor  # (N,) float32


@dataclass(frozen=True)
class PackedLayer:
    gamma: Tensor  # (Dt,) float32
    beta: Tensor
    into: PackedMatrix  # rows q, k, v, fc1
    dense: PackedMatrix  # its bias is dense's and fc2's together
    fc2: PackedMatrix


@dataclass(frozen=True)
class PackedModel:
    layers: list[PackedLayer]
    gamma: Tensor  # (Dt,) of the final LayerNorm
    beta: Tensor
    head: PackedMatrix  # (V rounded up to whole tiles, Dt)
    embedding: Tensor  # (V, Dt)
    cosines: Tensor  # (positions, rotary/2) float32
    sines: Tensor


def rotary_pairs(rows: Tensor, head_dim: int, rotary: int) -> Tensor:
    """(H hd, ...) with each head's rows in the order 0, r/2, 1, r/2 + 1, …, r - 1, then the rest as they were."""
    turned = torch.arange(rotary).reshape(2, -1).T.flatten()  # (rotary,)
    order = torch.cat([turned, torch.arange(rotary, head_dim)]).to(rows.device)
    return rows.unflatten(0, (-1, head_dim))[:, order].flatten(0, 1)


def pack_matrix(weight: Tensor, bias: Tensor, bits: Bits, dtype: torch.dtype) -> PackedMatrix:
    """A weight (N, K) and its bias (N,), rounded to `bits`."""
    if filling := -len(weight) % TILE:  # rows that nobody reads the results of
        weight = torch.cat([weight, weight[:1].expand(filling, -1)])
        bias = torch.cat([bias, bias[:1].expand(filling)])
    bias = bias.float().contiguous()
    if bits == 16:
        return PackedMatrix(weight.to(dtype).contiguous(), None, bias)
    if bits == 8:
        codes, scales = int8_rows(weight)
        return PackedMatrix((codes.int() + 128).to(torch.uint8), scales.contiguous(), bias)
    codes, scales, zeros = int4_groups(weight)
    codes = codes[:, : weight.shape[1]]  # the last group may be a part of one
    pairs = torch.stack([scales[0::2], scales[1::2], zeros[0::2], zeros[1::2]], dim=-1)  # (N/2, G, 4)
    return PackedMatrix(pack_nibbles(codes), pairs.contiguous(), bias)


def pack_nibbles(codes: Tensor) -> Tensor:
    """Codes 0-15 (N, K) uint8 -> (N, K/2): of eight neighbours the first four are the low halves of four bytes."""
    low, high = codes.unflatten(1, (-1, 2, 4)).unbind(2)  # (N, K/8, 4)
    return (low | (high << 4)).flatten(1).contiguous()


def rotary_table(config: TextConfig, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos and sin (positions, rotary/2), float32."""
    half = torch.arange(0, config.rotary_dim, 2, dtype=torch.float32)
    frequencies = config.rope_theta ** -(half / config.rotary_dim)  # (rotary/2,)
    angles = torch.arange(config.max_position_embeddings, dtype=torch.float32)[:, None] * frequencies
    return angles.cos().to(device), angles.sin().to(device)


def pack(
    config: TextConfig,
    weights: Mapping[str, Tensor],
    device: torch.device,
    dtype: torch.dtype,
    bits: Bits = 16,
) -> PackedModel:
    """`weights` is PhiForCausalLM's state dict, by its own names."""

    def vector(name: str) -> Tensor:
        return weights[name].to(device, torch.float32).contiguous()

    def weight(name: str) -> Tensor:
        return weights[f"{name}.weight"].to(device)

    def layer(name: str) -> PackedLayer:
        parts = [f"{name}.self_attn.{part}_proj" for part in "qkv"] + [f"{name}.mlp.fc1"]
        rows, biases = [weight(part) for part in parts], [vector(f"{part}.bias") for part in parts]
        for part in (0, 1):  # q and k turn
            rows[part] = rotary_pairs(rows[part], config.head_dim, config.rotary_dim)
            biases[part] = rotary_pairs(biases[part], config.head_dim, config.rotary_dim)
        dense, fc2 = f"{name}.self_attn.dense", f"{name}.mlp.fc2"
        out_bias = vector(f"{dense}.bias") + vector(f"{fc2}.bias")
        return PackedLayer(
            gamma=vector(f"{name}.input_layernorm.weight"),
            beta=vector(f"{name}.input_layernorm.bias"),
            into=pack_matrix(torch.cat(rows), torch.cat(biases), bits, dtype),
            dense=pack_matrix(weight(dense), out_bias, bits, dtype),
            fc2=pack_matrix(weight(fc2), torch.zeros_like(out_bias), bits, dtype),
        )

    cosines, sines = rotary_table(config, device)
    return PackedModel(
        layers=[layer(f"model.layers.{number}") for number in range(config.num_hidden_layers)],
        gamma=vector("model.final_layernorm.weight"),
        beta=vector("model.final_layernorm.bias"),
        head=pack_matrix(weight("lm_head"), vector("lm_head.bias"), bits, dtype),
        embedding=weight("model.embed_tokens").to(dtype).contiguous(),
        cosines=cosines,
        sines=sines,
    )
