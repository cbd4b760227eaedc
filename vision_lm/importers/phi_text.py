"""The language model inside other projects' checkpoints: its sizes, and its tensors under each kind of names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from vision_lm.config import TextConfig
from vision_lm.errors import CheckpointError
from vision_lm.importers.tensor_table import From, Table, copy, part, zeros
from vision_lm.importers.transformers_phi import phi_text_config
from vision_lm.skeleton import phi_shapes

# Tables that follow from the config, which older files also hold.
UNUSED = {
    r".*\.rotary_emb\.(inv_freq|cos_cached|sin_cached)": "follows from the config",
    r".*\.inner_(self_)?attn\.bias": "the causal mask",
}


def read_text_config(raw: Any, where: Path) -> TextConfig:
    """A Phi's sizes in transformers' words, or in those of Microsoft's first code. Raises CheckpointError."""
    if not isinstance(raw, Mapping):
        raise CheckpointError(f"{where}: the language model's config is missing")
    if "n_embd" not in raw and "n_layer" not in raw:
        return phi_text_config({**raw, "model_type": "phi"}, where)
    wanted = {"activation_function": ("gelu_new",), "n_head_kv": (None, raw.get("n_head"))}
    for key, allowed in wanted.items():
        if raw.get(key, allowed[0]) not in allowed:
            raise CheckpointError(f"{where}: {key} {raw[key]!r} is not supported, only {allowed[0]!r}")
    hidden, heads = int(raw.get("n_embd", 2048)), int(raw.get("n_head", 32))
    unit = int(raw.get("pad_vocab_size_multiple", 64))
    return TextConfig(
        vocab_size=-(-int(raw.get("vocab_size", 51_200)) // unit) * unit,
        hidden_size=hidden,
        intermediate_size=int(raw.get("n_inner") or 4 * hidden),
        num_hidden_layers=int(raw.get("n_layer", 24)),
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=int(raw.get("n_positions", 2048)),
        partial_rotary_factor=min(int(raw.get("rotary_dim", 32)), hidden // heads) / (hidden // heads),
        layer_norm_eps=float(raw.get("layer_norm_epsilon", 1e-5)),
    )


def language_table(config: TextConfig, theirs: Mapping[str, Tensor], body: str, head: str) -> Table:
    """The Phi whose layers are `body`.layers (or `body`.h) and whose output is `head`, whichever way it is named."""
    if f"{body}.embd.wte.weight" in theirs:
        return mixer_table(config, body, head)
    return phi_table(config, theirs, body, head)


def phi_table(config: TextConfig, theirs: Mapping[str, Tensor], body: str, head: str) -> Table:
    """Tensors named as in transformers: `body` stands in place of its "model", `head` in place of its "lm_head".

    transformers 4.36 kept queries, keys and values in one matrix, head by head. A head without a bias gets one of
    zeros: the answers are the same.
    """
    table: Table = {}
    for name in phi_shapes(config):
        stem, _, rest = name.partition(".")
        table[f"phi.{name}"] = copy(f"{head}.{rest}" if stem == "lm_head" else f"{body}.{rest}")
    if f"{head}.bias" not in theirs:
        table["phi.lm_head.bias"] = zeros(like=f"{head}.weight")
    for layer in range(config.num_hidden_layers):
        for end in ("weight", "bias"):
            fused = f"{body}.layers.{layer}.self_attn.query_key_value.{end}"
            if fused in theirs:
                for number, one in enumerate("qkv"):
                    ours = f"phi.model.layers.{layer}.self_attn.{one}_proj.{end}"
                    table[ours] = of_each_head(fused, number, config.num_attention_heads)
    return table


def of_each_head(fused: str, number: int, heads: int) -> From:
    """Queries (0), keys (1) or values (2) of a matrix whose rows are head by head its queries, keys and values."""

    def make(tensors: Sequence[Tensor]) -> Tensor:
        return tensors[0].unflatten(0, (heads, 3, -1))[:, number].flatten(0, 1)

    return From((fused,), make, f"part {number + 1} of 3 of each head's rows")


def mixer_table(config: TextConfig, body: str, head: str) -> Table:
    """Tensors named as in Microsoft's first code ("mixer.Wqkv"): the rows of Wqkv are queries, keys, values."""
    rows = config.num_attention_heads * config.head_dim
    table: Table = {"phi.model.embed_tokens.weight": copy(f"{body}.embd.wte.weight")}
    for end in ("weight", "bias"):
        for layer in range(config.num_hidden_layers):
            ours, theirs = f"phi.model.layers.{layer}", f"{body}.h.{layer}"
            for number, name in enumerate("qkv"):
                table[f"{ours}.self_attn.{name}_proj.{end}"] = part(
                    f"{theirs}.mixer.Wqkv.{end}", number * rows, (number + 1) * rows
                )
            table[f"{ours}.self_attn.dense.{end}"] = copy(f"{theirs}.mixer.out_proj.{end}")
            table[f"{ours}.mlp.fc1.{end}"] = copy(f"{theirs}.mlp.fc1.{end}")
            table[f"{ours}.mlp.fc2.{end}"] = copy(f"{theirs}.mlp.fc2.{end}")
            table[f"{ours}.input_layernorm.{end}"] = copy(f"{theirs}.ln.{end}")
        table[f"phi.model.final_layernorm.{end}"] = copy(f"{head}.ln.{end}")
        table[f"phi.lm_head.{end}"] = copy(f"{head}.linear.{end}")
    return table


def projector_table(theirs: Mapping[str, Tensor], first: str, second: str) -> dict[str, From]:
    """Two linear layers with a GELU between them. Missing biases become zeros."""
    table: Table = {}
    for ours, name in (("projector.patches.0", first), ("projector.patches.2", second)):
        table[f"{ours}.weight"] = copy(f"{name}.weight")
        bias = f"{name}.bias"
        table[f"{ours}.bias"] = copy(bias) if bias in theirs else zeros(like=f"{name}.weight")
    return table
