"""The originals at reduced width: their modules as their projects nest and name them, stated anew for the tests."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPVisionConfig, CLIPVisionModel, SiglipVisionConfig, SiglipVisionModel

from tests.conftest import randomise, text_config
from tests.importers.eva import Eva
from tests.importers.parity import Original, chunks, said
from vision_lm.config import TextConfig
from vision_lm.phi import build_phi

TEXT = text_config(max_position_embeddings=512, num_key_value_heads=4)
# Phi-2's heads, fewer of them: 80 wide, of which 32 are rotated.
PHI_2_HEADS = text_config(
    hidden_size=160,
    num_attention_heads=2,
    num_key_value_heads=2,
    max_position_embeddings=512,
    partial_rotary_factor=0.4,
)
# At reduced width as at full: patches of 14 pixels, 6 pixels beyond the last one, heads 72 wide.
SMALL = {
    "hidden_size": 144,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "patch_size": 14,
}
SMALL_CLIP, SMALL_SIGLIP = SMALL | {"image_size": 42}, SMALL | {"image_size": 48}
CLIP_L: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 14,
    "image_size": 336,
}
SO400M: dict[str, Any] = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "patch_size": 14,
    "image_size": 384,
}


class Parts:
    """A tower of transformers or an EVA, a projector, and a Phi of transformers; each project has its own names for them."""

    def __init__(self, kind: str, sizes: dict[str, Any], text: TextConfig, head_bias: bool = True) -> None:
        torch.manual_seed(0)
        if kind == "clip":
            self.tower: Any = CLIPVisionModel(CLIPVisionConfig(**sizes))
        elif kind == "eva":
            self.tower = Eva(**sizes)
        else:
            self.tower = SiglipVisionModel(SiglipVisionConfig(**sizes))
        self.phi: Any = build_phi(text)
        width, hidden = sizes["hidden_size"], text.hidden_size
        self.projector: Any = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden))
        for one in (self.tower, self.projector, self.phi):
            one.eval()
            if self.phi.lm_head.weight.device.type != "meta":
                randomise(one)
        if not head_bias and self.phi.lm_head.weight.device.type != "meta":
            self.phi.lm_head.bias.data.zero_()
        self.head_bias = head_bias

    def tensors(self, tower: str, projector: str, body: str, head: str) -> dict[str, Tensor]:
        """All of them, each part under its project's prefix. transformers once had `vision_model.` in a tower's names."""
        named = {
            f"{tower}{name.removeprefix('vision_model.')}": t for name, t in self.tower.state_dict().items()
        }
        named |= {f"{projector}.{name}": t for name, t in self.projector.state_dict().items()}
        for name, tensor in self.phi.state_dict().items():
            stem, _, rest = name.partition(".")
            if name != "lm_head.bias" or self.head_bias:
                named[f"{head}.{rest}" if stem == "lm_head" else f"{body}.{rest}"] = tensor
        return named

    @torch.no_grad()
    def original(
        self, pixels: Tensor, prompt: str, tokenizer: Any, layer: int = -2, skip: int = 0
    ) -> Original:
        """What they say of these pixels: features of hidden state `layer` without the first `skip`."""
        features = self.tower(pixels, output_hidden_states=True).hidden_states[layer][:, skip:]
        tokens = self.projector(features)
        ids = chunks(prompt, tokenizer)
        return Original(pixels, features, tokens, ids, *said(self.phi, ids, tokens))


def mixer_names(phi: dict[str, Tensor], layers: int, body: str, head: str) -> dict[str, Tensor]:
    """A Phi's tensors as Microsoft's first code named them: Wqkv is queries, keys, values, one below the other."""
    named = {f"{body}.embd.wte.weight": phi["model.embed_tokens.weight"]}
    for end in ("weight", "bias"):
        for layer in range(layers):
            ours, theirs = f"{body}.h.{layer}", f"model.layers.{layer}"
            qkv = [phi[f"{theirs}.self_attn.{one}_proj.{end}"] for one in "qkv"]
            named[f"{ours}.mixer.Wqkv.{end}"] = torch.cat(qkv)
            named[f"{ours}.mixer.out_proj.{end}"] = phi[f"{theirs}.self_attn.dense.{end}"]
            named[f"{ours}.ln.{end}"] = phi[f"{theirs}.input_layernorm.{end}"]
            for name in ("fc1", "fc2"):
                named[f"{ours}.mlp.{name}.{end}"] = phi[f"{theirs}.mlp.{name}.{end}"]
        named[f"{head}.ln.{end}"] = phi[f"model.final_layernorm.{end}"]
        named[f"{head}.linear.{end}"] = phi[f"lm_head.{end}"]
    return named


def mixer_config(text: TextConfig) -> dict[str, Any]:
    """The same sizes in the words of its config."""
    return {
        "model_type": "phi-msft",
        "vocab_size": text.vocab_size,
        "n_embd": text.hidden_size,
        "n_layer": text.num_hidden_layers,
        "n_head": text.num_attention_heads,
        "n_inner": text.intermediate_size,
        "n_positions": text.max_position_embeddings,
        "rotary_dim": text.rotary_dim,
        "pad_vocab_size_multiple": 32,
    }


def fused_head_by_head(tensors: dict[str, Tensor], body: str, heads: int) -> dict[str, Tensor]:
    """Queries, keys and values in one matrix, as transformers 4.36 kept them: each head's three together."""
    separate = re.compile(rf"{body}\.layers\.\d+\.self_attn\.[qkv]_proj\.")
    fused = {name: tensor for name, tensor in tensors.items() if not separate.match(name)}
    layers = {
        name.split(".layers.")[1].split(".")[0] for name in tensors if name.startswith(f"{body}.layers.")
    }
    for layer in layers:
        for end in ("weight", "bias"):
            stem = f"{body}.layers.{layer}.self_attn"
            parts = [tensors[f"{stem}.{one}_proj.{end}"].unflatten(0, (heads, -1)) for one in "qkv"]
            fused[f"{stem}.query_key_value.{end}"] = torch.stack(parts, dim=1).flatten(0, 2)
    return fused


def layer_norm(x: Tensor, tensors: dict[str, Tensor], name: str, eps: float) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], tensors[f"{name}.weight"], tensors[f"{name}.bias"], eps)


def linear(x: Tensor, tensors: dict[str, Tensor], name: str) -> Tensor:
    return F.linear(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"])
