"""moondream2, restated from its code release by release: its own SigLIP, a picture's parts, its prompts, its attention."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from tests.conftest import randomise, train_tokenizer
from tests.importers.layouts import TEXT, layer_norm, linear, mixer_names
from tests.importers.moondream2_parts import nearest_size, overlapping, reconstructed
from tests.importers.parity import PICTURE, QUESTION, Original, save, spliced
from vision_lm.bench.shapes import PHI_1_5
from vision_lm.config import TextConfig
from vision_lm.phi import build_phi

HEAD = 72


@dataclass(frozen=True)
class Kind:
    """What a release's code is like."""

    torch_code: bool = False  # names and config of 2025
    own_tower: bool = True
    views: int = 1
    text_key: str = "text_config"
    regions: bool = False
    prompt: str = "\n\nQuestion: {}\n\nAnswer:"
    tags: bool = False


SPRING = Kind(own_tower=False, text_key="phi_config", prompt="\n\nQuestion: {}\n\nAnswer: ", tags=True)
KINDS = {
    "2024-03-05": SPRING,
    "2024-03-06": SPRING,
    "2024-04-02": Kind(text_key="phi_config"),
    "2024-05-08": Kind(),
    "2024-05-20": Kind(views=2),
    "2024-07-23": Kind(views=2),
    "2024-08-26": Kind(views=2, regions=True),
    "2025-01-09": Kind(True, views=2, regions=True, prompt="\n\nQuestion:{}\n\nAnswer:"),
    "2025-03-27": Kind(True, views=2, regions=True),
    "2025-04-14": Kind(True, views=2, regions=True),
}


@dataclass(frozen=True)
class Sizes:
    """A tower's, and what the code calls margin: patches that a part shares with its neighbour at each side."""

    width: int = 2 * HEAD
    inner: int = 100
    layers: int = 2
    grid: int = 3
    margin: int = 1
    projector: int = 96

    @property
    def side(self) -> int:
        return 14 * self.grid


FULL = Sizes(1152, 4304, 27, 27, 4, 8192)


class Moondream2:
    """Weights, the names that a release has for them, and what its code says of a picture."""

    def __init__(self, kind: Kind, sizes: Sizes = Sizes(), text: TextConfig = TEXT) -> None:
        torch.manual_seed(0)
        self.kind, self.sizes, self.text = kind, sizes, text
        width, inner = sizes.width, sizes.inner
        shapes: dict[str, tuple[int, ...]] = {"patch_embed.linear": (width, 588), "norm": (width,)}
        for layer in range(sizes.layers):
            block = f"blocks.{layer}"
            shapes |= {f"{block}.norm1": (width,), f"{block}.norm2": (width,)}
            shapes |= {f"{block}.attn.qkv": (3 * width, width), f"{block}.attn.proj": (width, width)}
            shapes |= {f"{block}.mlp.fc1": (inner, width), f"{block}.mlp.fc2": (width, inner)}
        self.visual = {"pos_embed": torch.randn(1, sizes.grid**2, width)} | weights(shapes)
        for name in ("pos_embed", "patch_embed.linear.weight", "patch_embed.linear.bias"):
            self.visual[name] = self.visual[name] / 50  # so small that a LayerNorm's epsilon shows
        self.mlp = weights(
            {
                "fc1": (sizes.projector, kind.views * width),
                "fc2": (text.hidden_size, sizes.projector),
            }
        )
        self.phi: Any = build_phi(text).eval()
        if self.phi.lm_head.weight.device.type != "meta":
            randomise(self.phi)

    def tensors(self) -> dict[str, Tensor]:
        layers, phi = self.text.num_hidden_layers, self.phi.state_dict()
        if not self.kind.torch_code:
            named = {f"vision_encoder.encoder.model.visual.{n}": t for n, t in self.visual.items()}
            named |= {f"vision_encoder.projection.mlp.{n}": t for n, t in self.mlp.items()}
            named |= mixer_names(phi, layers, "text_model.transformer", "text_model.lm_head")
            rest = {"region_model.position_features.weight": (128, 2), "region_model.size_decoder.bias": (2,)}
        else:
            renamed = {"pos_embed": "pos_emb", "patch_embed.linear": "patch_emb", "norm": "post_ln"}
            named = {}
            for name, tensor in self.visual.items():
                stem, _, end = name.rpartition(".")
                new = renamed.get(name) or f"{renamed.get(stem, stem)}.{end}"
                named[f"model.vision.{new.replace('norm1', 'ln1').replace('norm2', 'ln2')}"] = tensor
            named |= {f"model.vision.proj_mlp.{n}": t for n, t in self.mlp.items()}
            named |= short_names(phi, layers)
            rest = {"model.region.coord_features": (1, 128), "model.region.size_decoder.fc1.bias": (64,)}
        return named | ({n: torch.randn(shape) for n, shape in rest.items()} if self.kind.regions else {})

    def config(self) -> dict[str, Any]:
        if not self.kind.torch_code:
            phi = {key: value for key, value in asdict(self.text).items() if key != "attention"}
            return {
                "model_type": "moondream1",
                "architectures": ["Moondream"],
                self.kind.text_key: {"model_type": "phi"}
                if self.text == PHI_1_5
                else {"model_type": "phi", **phi},
            }
        settings = {
            "text": {
                "dim": self.text.hidden_size,
                "ff_dim": self.text.intermediate_size,
                "n_layers": self.text.num_hidden_layers,
                "vocab_size": self.text.vocab_size,
                "max_context": self.text.max_position_embeddings,
                "n_heads": self.text.num_attention_heads,
                "n_kv_heads": self.text.num_key_value_heads,
                "prefix_attn": 1 + self.sizes.grid**2,
            },
            "vision": {"crop_size": self.sizes.side, "overlap_margin": self.sizes.margin, "max_crops": 12},
        }
        published = self.text == PHI_1_5
        return {
            "model_type": "moondream1",
            "architectures": ["HfMoondream"],
            "config": {} if published else settings,
        }

    def saved(self, folder: Path) -> Path:
        return save(folder, self.config(), self.tensors())

    def tower(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, N, Dv)."""
        v, width = self.visual, self.sizes.width
        eps = 1e-5 if self.kind.own_tower else 1e-6
        approximate = "tanh" if self.kind.own_tower else "none"
        flat = F.unfold(pixels, 14, stride=14).transpose(1, 2)  # (B, N, 3 * 14 * 14): channel, row, column
        x = linear(flat, v, "patch_embed.linear") + v["pos_embed"]
        for layer in range(self.sizes.layers):
            block = f"blocks.{layer}"
            heads = linear(layer_norm(x, v, f"{block}.norm1", eps), v, f"{block}.attn.qkv")
            q, k, values = (part.unflatten(2, (-1, HEAD)).transpose(1, 2) for part in heads.chunk(3, dim=-1))
            mixed = (q @ k.mT / math.sqrt(HEAD)).softmax(-1) @ values
            x = x + linear(mixed.transpose(1, 2).reshape(*x.shape[:2], width), v, f"{block}.attn.proj")
            inner = linear(layer_norm(x, v, f"{block}.norm2", eps), v, f"{block}.mlp.fc1")
            x = x + linear(F.gelu(inner, approximate=approximate), v, f"{block}.mlp.fc2")
        return layer_norm(x, v, "norm", eps)

    def seen(self, image: Image.Image) -> tuple[Tensor, Tensor]:
        """A picture -> its pixels as we hold them, and its features (1, N, views * Dv)."""
        side, grid = self.sizes.side, self.sizes.grid
        if self.kind.views == 1:
            pixels = normalised(image.resize((side, side), Image.Resampling.BICUBIC))
            return pixels, self.tower(pixels)
        if not self.kind.torch_code:
            high, wide = nearest_size(image, side)
            pixels = normalised(image.resize((wide, high), Image.Resampling.BICUBIC))
            whole = self.tower(F.interpolate(pixels, (side, side), mode="bilinear"))
            lines = [
                torch.cat(
                    [self.map(pixels[:, :, y : y + side, x : x + side]) for x in range(0, wide, side)], 3
                )
                for y in range(0, high, side)
            ]
            fine = F.interpolate(torch.cat(lines, 2), (grid, grid), mode="bilinear")
            return pixels, torch.cat([whole, fine.flatten(2).transpose(1, 2)], -1)
        crops, (rows, columns) = overlapping(image, side, self.sizes.margin)
        views = [normalised(one) for one in crops]
        whole = self.tower(views[0])
        maps = [self.map(one)[0].permute(1, 2, 0) for one in views[1:]]  # (g, g, Dv) each
        pooled = F.adaptive_avg_pool2d(reconstructed(maps, rows, columns, self.sizes.margin), (grid, grid))
        features = torch.cat([whole, pooled.flatten(1).T[None]], -1)
        if rows * columns == 1:
            return views[0], features
        lines = [torch.cat(views[1 + y * columns : 1 + (y + 1) * columns], 3) for y in range(rows)]
        return torch.cat([torch.cat([views[0]] * columns, 3), *lines], 2), features

    def map(self, pixels: Tensor) -> Tensor:
        return self.tower(pixels).transpose(1, 2).unflatten(2, (self.sizes.grid, -1))  # (1, Dv, g, g)

    @torch.no_grad()
    def original(self, image: Image.Image) -> Original:
        pixels, features = self.seen(image)
        approximate = "tanh" if self.kind.own_tower else "none"
        hidden = F.gelu(linear(features, self.mlp, "fc1"), approximate=approximate)
        tokens = linear(hidden, self.mlp, "fc2")
        ids = prompt_ids(self.kind)
        return Original(pixels, features, tokens, ids, *self.said(ids, tokens))

    def said(self, ids: list[int], tokens: Tensor) -> tuple[Tensor, list[int]]:
        """First logits and 32 greedy tokens: causal, but for 2025's first token and picture."""
        embeddings = spliced(self.phi, ids, tokens)
        opened = 1 + tokens.shape[1] if self.kind.torch_code else 0
        first: Tensor | None = None
        greedy: list[int] = []
        for _ in range(32):
            seen = torch.ones(embeddings.shape[1], embeddings.shape[1]).tril().bool()
            seen[:opened, :opened] = True
            mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
            logits = self.phi(inputs_embeds=embeddings, attention_mask=mask[None, None]).logits[0, -1]
            first = logits if first is None else first
            greedy.append(int(logits.argmax()))
            new = self.phi.get_input_embeddings()(torch.tensor([greedy[-1:]]))
            embeddings = torch.cat([embeddings, new], dim=1)
        assert first is not None
        return first, greedy


def weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Random ones, large enough to be told apart."""
    made: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        made[f"{name}.weight"] = torch.randn(shape) * (1.5 / math.sqrt(shape[-1]) if len(shape) > 1 else 1)
        made[f"{name}.bias"] = torch.randn(shape[0]) / 4
    return made


def normalised(image: Image.Image) -> Tensor:
    return (torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None].float() / 255 - 0.5) / 0.5


def short_names(phi: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    """transformers' Phi as moondream's own code names it."""
    named = {"model.text.wte": phi["model.embed_tokens.weight"]}
    for end in ("weight", "bias"):
        named[f"model.text.post_ln.{end}"] = phi[f"model.final_layernorm.{end}"]
        named[f"model.text.lm_head.{end}"] = phi[f"lm_head.{end}"]
        for layer in range(layers):
            ours, theirs = f"model.text.blocks.{layer}", f"model.layers.{layer}"
            named[f"{ours}.attn.qkv.{end}"] = torch.cat(
                [phi[f"{theirs}.self_attn.{one}_proj.{end}"] for one in "qkv"]
            )
            for short, long in {
                "attn.proj": "self_attn.dense",
                "mlp.fc1": "mlp.fc1",
                "mlp.fc2": "mlp.fc2",
                "ln": "input_layernorm",
            }.items():
                named[f"{ours}.{short}.{end}"] = phi[f"{theirs}.{long}.{end}"]
    return named


def prompt_ids(kind: Kind) -> list[int]:
    tokenizer = train_tokenizer()

    def ids(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False).ids

    before, after = ("<image>", "</image>") if kind.tags else ("", "")
    asked = ids(after + kind.prompt.format(QUESTION))
    return [tokenizer.token_to_id("<|endoftext|>"), *(ids(before) if before else []), PICTURE, *asked]
