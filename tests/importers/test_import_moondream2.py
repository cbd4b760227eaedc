"""moondream2, restated from its code release by release: its own SigLIP, a picture's parts, its prompts, its attention."""

from __future__ import annotations

import itertools
import json
import math
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from projector import recipe
from projector.assemble import open_for_training
from projector.recipe import Recipe
from tests.conftest import randomise, train_tokenizer
from tests.importers.layouts import TEXT, layer_norm, linear, mixer_names
from tests.importers.parity import (
    PICTURE,
    QUESTION,
    Original,
    assert_parity,
    imported,
    picture,
    save,
    spliced,
)
from vision_lm.bench.shapes import PHI_1_5
from vision_lm.checkpoint import read_checkpoint
from vision_lm.config import Config, TextConfig
from vision_lm.errors import CheckpointError, ExportError, RequestError, TrainingError
from vision_lm.exporters.export import TARGETS, Settings, export
from vision_lm.importers.importing import check, import_checkpoint
from vision_lm.importers.moondream import convert
from vision_lm.importers.source import Source
from vision_lm.model import VisionLM
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


def nearest_size(image: Image.Image, side: int) -> tuple[int, int]:
    """Height and width, as in preprocess() of moondream/vision_encoder.py."""
    width, height = image.size
    if max(image.size) < 512:
        return side, side
    shapes = [(high, wide) for high in (side, 2 * side) for wide in (side, 2 * side)]
    return min(
        shapes,
        key=lambda size: (
            abs(size[1] / size[0] - width / height),
            abs(size[0] - width) + abs(size[1] - height),
        ),
    )


def overlapping(image: Image.Image, side: int, margin: int) -> tuple[list[Image.Image], tuple[int, int]]:
    """The whole and the parts, and rows and columns, as in overlap_crop_image() of moondream/torch/image_crops.py.

    It resizes with libvips, or where that is missing (since 2025-05-16) as here.
    """
    edge = 14 * margin
    window = side - 2 * edge
    height, width = image.height - 2 * edge, image.width - 2 * edge
    tiles = (1, 1)
    if height > window and width > window:
        high, wide = math.ceil(height / window), math.ceil(width / window)
        if high * wide > 12:
            ratio = math.sqrt(12 / (high * wide))
            tiles = max(1, math.floor(high * ratio)), max(1, math.floor(wide * ratio))
        else:
            high = max(math.floor(math.sqrt(12 * height / width)), high)
            wide = max(math.floor(math.sqrt(12 * width / height)), wide)
            if high * wide > 12 and wide > high:
                wide = math.floor(12 / high)
            elif high * wide > 12:
                high = math.floor(12 / wide)
            tiles = max(1, high), max(1, wide)
    size = tiles[1] * window + 2 * edge, tiles[0] * window + 2 * edge
    fine = image.resize(size, Image.Resampling.LANCZOS)
    crops = [image.resize((side, side), Image.Resampling.LANCZOS)]
    for y, x in itertools.product(range(tiles[0]), range(tiles[1])):
        crops.append(fine.crop((x * window, y * window, x * window + side, y * window + side)))
    return crops, tiles


def reconstructed(maps: list[Tensor], rows: int, columns: int, margin: int) -> Tensor:
    """Maps (g, g, Dv) of the parts -> the picture's (Dv, h, w), as in reconstruct_from_crops()."""
    grid, _, width = maps[0].shape
    step = grid - 2 * margin
    whole = torch.full((rows * step + 2 * margin, columns * step + 2 * margin, width), math.nan)
    for number, one in enumerate(maps):
        y, x = divmod(number, columns)
        top, left = (0 if place == 0 else margin for place in (y, x))
        bottom = grid if y == rows - 1 else grid - margin
        right = grid if x == columns - 1 else grid - margin
        whole[y * step + top : y * step + bottom, x * step + left : x * step + right] = one[
            top:bottom, left:right
        ]
    return whole.permute(2, 0, 1)


def prompt_ids(kind: Kind) -> list[int]:
    tokenizer = train_tokenizer()

    def ids(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False).ids

    before, after = ("<image>", "</image>") if kind.tags else ("", "")
    asked = ids(after + kind.prompt.format(QUESTION))
    return [tokenizer.token_to_id("<|endoftext|>"), *(ids(before) if before else []), PICTURE, *asked]


def noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


PICTURES = {"small": picture(), "wide": noise(640, 300), "high": noise(90, 520), "tall": noise(96, 117)}


@pytest.mark.parametrize("date", KINDS)
@pytest.mark.parametrize("shown", ["small", "wide"])
def test_parity(date: str, shown: str, tmp_path: Path) -> None:
    kind = KINDS[date]
    model = Moondream2(kind)
    vlm = imported(model.saved(tmp_path / f"moondream2-{date}"), tmp_path / "ours")
    with torch.no_grad():
        original = model.original(PICTURES[shown])
    assert_parity(vlm, original, image=PICTURES[shown])
    assert vlm.config.prompt.stop == (("<END>",) if kind.tags else ())
    assert vlm.config.text.attention == ("prefix" if kind.torch_code else "causal")


@pytest.mark.parametrize("date", ["2024-05-20", "2025-03-27"])
def test_pictures_of_every_shape_are_cut_as_theirs(date: str, tmp_path: Path) -> None:
    model = Moondream2(KINDS[date])
    vlm = imported(model.saved(tmp_path / f"moondream2-{date}"), tmp_path / "ours")
    shapes = set()
    for image in [
        *PICTURES.values(),
        noise(512, 512),
        noise(600, 450),
        noise(450, 600),
        noise(43, 43),
        noise(59, 70),
    ]:
        with torch.no_grad():
            pixels, features = model.seen(image)
        ours = vlm.encoder.preprocess(image)[None]
        shapes.add(ours.shape)
        assert ours.shape == pixels.shape
        torch.testing.assert_close(ours, pixels, rtol=0, atol=1e-6)
        torch.testing.assert_close(
            vlm.encoder(ours).patches, features, rtol=0, atol=1e-4 * float(features.abs().max())
        )
    assert len(shapes) >= 4


@pytest.mark.parametrize("date", ["2024-05-20", "2025-03-27"])
def test_pictures_in_parts_are_batched_and_told_apart(date: str, tmp_path: Path) -> None:
    """Answers about pictures of several shapes at once, and of the same again, are those about each alone.

    Two are white all over, one wide and one high: the same bytes, and two pictures.
    """
    vlm = imported(Moondream2(KINDS[date]).saved(tmp_path / f"moondream2-{date}"), tmp_path / "ours")
    images = [*PICTURES.values(), *(Image.new("RGB", size, "white") for size in ((640, 300), (300, 640)))]
    alone = [vlm.ask(image, QUESTION, max_tokens=8) for image in images]
    again = VisionLM(read_checkpoint(tmp_path / "ours"), device="cpu", dtype="float32")
    together = again.ask([*images, *images], QUESTION, max_tokens=8)
    assert [one.tokens for one in together] == [one.tokens for one in [*alone, *alone]]
    assert len({one.tokens for one in alone}) > 1
    assert again.engine.images.encoded == len(images)


@pytest.mark.parametrize("date", KINDS)
def test_every_tensor_of_the_public_sizes_is_used(date: str) -> None:
    with torch.device("meta"):
        model = Moondream2(KINDS[date], FULL, PHI_1_5)
        tensors = model.tensors()
    source = Source(f"vikhyatk/moondream2@{date}", Path("full"), model.config())
    converted = convert(source, tensors, train_tokenizer())
    check(converted, source)
    assert replace(converted.config.text, attention="causal") == PHI_1_5
    assert converted.config.vision.image_size == 378
    assert converted.config.projector.in_features == 1152 * KINDS[date].views


def refused(model: Moondream2, folder: Path, said: str, **config: Any) -> None:
    model.saved(folder)
    (folder / "config.json").write_text(json.dumps(model.config() | config))
    with pytest.raises(CheckpointError, match=said) as error:
        import_checkpoint(folder, folder / "ours")
    assert "\n" not in str(error.value) and not (folder / "ours").exists()


def test_a_release_that_is_not_known_is_refused(tmp_path: Path) -> None:
    """Files that several releases share, with no date, an unknown one, or one of other files; a name changes nothing else."""
    spring, last = Moondream2(KINDS["2024-04-02"]), Moondream2(KINDS["2025-03-27"])
    refused(
        spring, tmp_path / "moondream2", "the name has no date; known are 2024-03-05, 2024-03-06, 2024-04-02"
    )
    refused(spring, tmp_path / "moondream2-2024-03-13", "the name says 2024-03-13; known are")
    refused(last, tmp_path / "moondream2", "model.vision.*the name has no date; known are 2025-01-09")
    refused(last, tmp_path / "moondream2-2025-06-21", "the name says 2025-06-21; known are 2025-01-09")
    refused(
        Moondream2(KINDS["2024-05-20"]),
        tmp_path / "moondream2-2024-05-08",
        "named 2024-05-08, but its projector reads two views, as in 2024-05-20 and 2024-07-23 and 2024-08-26",
    )
    refused(
        Moondream2(Kind(views=3)),
        tmp_path / "three",
        "reads 432 features of a tower 144 wide; of no known release",
    )


def test_settings_and_tensors_that_are_not_known_are_refused(tmp_path: Path) -> None:
    last = Moondream2(KINDS["2025-03-27"])
    moe = {"text": {"moe": {}}}
    refused(last, tmp_path / "a-2025-03-27", "config.text.moe is of no known release", config=moe)
    short = {"text": {"prefix_attn": 5}}
    refused(last, tmp_path / "b-2025-03-27", "prefix_attn is 5, allowed: 10", config=short)
    may = Moondream2(KINDS["2024-05-20"])
    folder = save(tmp_path / "c", may.config(), may.tensors() | {"text_model.extra.weight": torch.zeros(2)})
    with pytest.raises(CheckpointError, match=r"left over: text_model\.extra\.weight"):
        import_checkpoint(folder, tmp_path / "ours")


@pytest.fixture(scope="module")
def last(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An import of 2025's."""
    folder = tmp_path_factory.mktemp("last")
    import_checkpoint(
        Moondream2(KINDS["2025-03-27"]).saved(folder / "moondream2-2025-03-27"), folder / "ours"
    )
    return folder / "ours"


def test_what_does_not_know_parts_or_prefix_attention_refuses_them(last: Path, tmp_path: Path) -> None:
    """Export, training, and an explanation where the parts overlap; each says why, and nothing is written."""
    for target in TARGETS:
        with pytest.raises(ExportError, match="prefix attention over a picture's tokens"):
            export(last, Settings(target, tmp_path / target, language_only=target == "gguf"))
        assert not (tmp_path / target).exists()
    with pytest.raises(TrainingError, match="in parts, or in both directions"):
        open_for_training(read_checkpoint(last), Recipe(str(last), "", (recipe.Source(""),)))
    vlm = VisionLM(read_checkpoint(last), device="cpu", dtype="float32")
    with pytest.raises(RequestError, match="in parts that overlap"):
        vlm.explain(picture(), QUESTION, grid=2)


def test_a_picture_in_a_grid_of_parts_is_explained(tmp_path: Path) -> None:
    """Its sheet is the picture, larger than the tower's square and no square itself: windows cover all of it."""
    vlm = imported(Moondream2(KINDS["2024-05-20"]).saved(tmp_path / "moondream2"), tmp_path / "ours")
    explained = vlm.explain(PICTURES["wide"], QUESTION, grid=2)
    assert explained.map.shape == (300, 640) and np.isfinite(explained.windows).all()
    assert np.abs(explained.windows).min() > 0


def test_impossible_parts_are_refused(last: Path, tmp_path: Path) -> None:
    settings = json.loads((last / "config.json").read_text())
    for changes, said in (
        ({"crops": {"kind": "overlap", "margin": 2}}, "crops.margin is 2, allowed: 0 to less than half of 3"),
        ({"crops": {"kind": "overlap", "most": 0}}, "most is 0 and smallest 0"),
        ({"image_size": 43}, "whole patches, found patches of 14 in 43 pixels"),
        ({"resize": "crop"}, "allowed beside it: no pooled tokens, no skipped patches, resize 'squash'"),
    ):
        path = tmp_path / "config.json"
        path.write_text(json.dumps(settings | {"vision": settings["vision"] | changes}))
        with pytest.raises(CheckpointError, match=re.escape(said)):
            Config.load(path)
