"""moondream1, January's and February's, restated from its code: timm's SigLIP on flat patches, its projectors, its Phi."""

from __future__ import annotations

import dataclasses
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from tests.conftest import randomise, train_tokenizer
from tests.importers.layouts import TEXT, linear, mixer_config, mixer_names
from tests.importers.parity import (
    PICTURE,
    QUESTION,
    Original,
    assert_parity,
    imported,
    picture,
    said,
    save,
)
from tests.importers.test_import_refusals import Bomb
from vision_lm.bench.shapes import PHI_1_5
from vision_lm.checkpoint import read_checkpoint
from vision_lm.config import TextConfig
from vision_lm.errors import CheckpointError
from vision_lm.importers.importing import check, import_checkpoint
from vision_lm.importers.moondream import convert
from vision_lm.importers.source import Source
from vision_lm.model import VisionLM
from vision_lm.phi import build_phi

SMALL = {"embed_dim": 144, "depth": 2, "num_heads": 2, "mlp_ratio": 0.7, "img_size": 42}
FULL = {"embed_dim": 1152, "depth": 27, "num_heads": 16, "mlp_ratio": 3.7362, "img_size": 378}


class Moondream:
    """Both generations: the modules, the names of their tensors, and what they say."""

    def __init__(self, january: bool, sizes: dict[str, Any], text: TextConfig, inner: int) -> None:
        torch.manual_seed(0)
        self.january, self.text, width = january, text, text.hidden_size
        self.visual: Any = VisionTransformer(
            **sizes, patch_size=14, class_token=False, global_pool="", num_classes=0
        ).eval()
        mlps = {"mlp": sizes["embed_dim"]} if not january else {"mlp1": sizes["embed_dim"], "mlp2": width}
        self.projection = nn.ModuleDict(
            {
                name: nn.ModuleDict({"fc1": nn.Linear(inputs, inner), "fc2": nn.Linear(inner, width)})
                for name, inputs in mlps.items()
            }
        )
        if january:
            self.projection["ln"] = nn.LayerNorm(width)
        self.phi: Any = build_phi(text).eval()
        if self.phi.lm_head.weight.device.type != "meta":
            for module in (self.visual, self.projection, self.phi):
                randomise(module)

    def tensors(self) -> dict[str, Tensor]:
        stem = "vision_encoder.model" if self.january else "vision_encoder"
        named = {f"{stem}.projection.{name}": t for name, t in self.projection.state_dict().items()}
        for name, tensor in self.visual.state_dict().items():
            if name == "patch_embed.proj.weight":
                tensor = tensor.flatten(1)  # (Dv, 3 * 14 * 14)
            named[
                f"{stem}.encoder.model.visual.{name.replace('.proj.', '.linear.') if 'patch' in name else name}"
            ] = tensor
        phi = self.phi.state_dict()
        return named | mixer_names(
            phi, self.text.num_hidden_layers, "text_model.transformer", "text_model.lm_head"
        )

    def config(self) -> dict[str, Any]:
        return {
            "model_type": "moondream1",
            "architectures": ["Moondream"],
            "auto_map": {"AutoModelForCausalLM": "moondream.Moondream"},
            "phi_config": mixer_config(self.text),
        }

    @torch.no_grad()
    def original(self, pixels: Tensor, ids: list[int]) -> Original:
        """Pixels that are all seen, (1, 3, 42, 42) -> what it says of them."""
        named = self.tensors()
        side = pixels.shape[-1] // 14
        flat = pixels.unflatten(2, (side, 14)).unflatten(4, (side, 14))  # (1, 3, h, p1, w, p2)
        flat = flat.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)  # (1, h w, 3 p1 p2)
        stem = "vision_encoder.model" if self.january else "vision_encoder"
        x = linear(flat, named, f"{stem}.encoder.model.visual.patch_embed.linear") + self.visual.pos_embed
        features = self.visual.norm(self.visual.blocks(x))
        first = "mlp1" if self.january else "mlp"
        tokens = self.mlp(features, first)
        if self.january:
            ln: Any = self.projection["ln"]
            tokens = ln(tokens)
            tokens = tokens + self.mlp(tokens, "mlp2")
        return Original(pixels, features, tokens, ids, *said(self.phi, ids, tokens))

    def mlp(self, x: Tensor, name: str) -> Tensor:
        part: Any = self.projection[name]
        return part["fc2"](F.gelu(part["fc1"](x)))


def normalised(image: Image.Image) -> Tensor:
    return (torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None].float() / 255 - 0.5) / 0.5


def prompt_ids(january: bool) -> list[int]:
    tokenizer = train_tokenizer()

    def ids(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False).ids

    end = "Answer:" if january else "Answer: "
    after = ids(f"</image>\n\nQuestion: {QUESTION}\n\n{end}")
    return [tokenizer.token_to_id("<|endoftext|>"), *ids("<image>"), PICTURE, *after]


@pytest.fixture(params=[True, False], ids=["January", "February"])
def generation(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Moondream, VisionLM]:
    model = Moondream(request.param, SMALL, TEXT, inner=96)
    return model, imported(save(tmp_path / "theirs", model.config(), model.tensors()), tmp_path / "ours")


def test_parity(generation: tuple[Moondream, VisionLM]) -> None:
    """January's pictures are stretched to 6 pixels more than are seen, and these cut off; February's are stretched to
    just what is seen."""
    model, vlm = generation
    side = 48 if model.january else 42
    stretched = picture().resize((side, side), Image.Resampling.BICUBIC)
    theirs = model.original(normalised(stretched)[:, :, :42, :42], prompt_ids(model.january))
    seen = vlm.encoder.preprocess(picture())[None]
    assert seen.shape[-1] == side
    torch.testing.assert_close(seen[:, :, :42, :42], theirs.pixels, rtol=0, atol=1e-6)
    other = 42 if model.january else 48  # the other generation's picture is another
    assert not torch.allclose(
        normalised(picture().resize((other, other), Image.Resampling.BICUBIC))[:, :, :42, :42],
        theirs.pixels,
        atol=0.05,
    )
    whole = Original(seen, theirs.features, theirs.tokens, theirs.ids, theirs.logits, theirs.greedy)
    assert_parity(vlm, whole, stop=("<END>",))


class Holder(nn.Module):
    """A module that TorchScript can save; what it does is never asked."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def as_first_release(model: Moondream, folder: Path) -> Path:
    """vision.pt, a TorchScript archive; text_model.pt, a state dict; a folder with the tokenizer."""
    (folder / "tokenizer").mkdir(parents=True)
    holder = Holder()
    for name, tensor in model.tensors().items():
        if name.startswith("vision_encoder.model."):
            path, _, leaf = name.removeprefix("vision_encoder.model.").rpartition(".")
            place = holder
            for part in path.split("."):
                if part not in dict(place.named_children()):
                    place.add_module(part, Holder())
                place = place.get_submodule(part)
            place.register_parameter(leaf, nn.Parameter(tensor.clone()))
    torch.jit.script(holder).save(folder / "vision.pt")
    text = {
        name.removeprefix("text_model."): t for name, t in model.tensors().items() if name.startswith("text_")
    }
    torch.save(text, folder / "text_model.pt")
    (folder / "text_model_cfg.json").write_text(json.dumps(mixer_config(model.text)))
    train_tokenizer().save(str(folder / "tokenizer" / "tokenizer.json"))
    return folder


def test_the_first_release_is_read_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TorchScript's archive gives the very tensors, without TorchScript; one whose pickle calls something is refused."""
    model = Moondream(True, SMALL, TEXT, inner=96)
    folder = as_first_release(model, tmp_path / "first")
    whole = save(tmp_path / "later", model.config(), model.tensors())
    monkeypatch.setattr(torch.jit, "load", None)
    import_checkpoint(folder, tmp_path / "a")
    import_checkpoint(whole, tmp_path / "b")
    first, later = (read_checkpoint(tmp_path / name) for name in "ab")
    assert first.tensors.keys() == later.tensors.keys()
    assert all(torch.equal(tensor, later.tensors[name]) for name, tensor in first.tensors.items())
    assert dataclasses.replace(first.config, name="") == dataclasses.replace(later.config, name="")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    loaded = read_checkpoint(folder)  # at once, without a config.json to say whose it is
    assert all(torch.equal(tensor, loaded.tensors[name]) for name, tensor in first.tensors.items())

    bomb = pickle.dumps(Bomb(tmp_path / "ran"))
    with zipfile.ZipFile(folder / "vision.pt", "w") as archive:
        archive.writestr("vision/data.pkl", bomb)
    with pytest.raises(CheckpointError, match="a pickle that runs code is refused"):
        import_checkpoint(folder, tmp_path / "c")
    (folder / "vision.pt").write_bytes(b"PK nothing")
    with pytest.raises(CheckpointError, match="not a TorchScript file"):
        import_checkpoint(folder, tmp_path / "c")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("january", [True, False])
def test_every_tensor_of_the_public_sizes_is_used(january: bool) -> None:
    with torch.device("meta"):
        model = Moondream(january, FULL, PHI_1_5, inner=8192)
        tensors = model.tensors()
    source = Source("full", Path("full"), model.config())
    converted = convert(source, tensors, train_tokenizer())
    check(converted, source)
    assert converted.config.text == PHI_1_5
    assert converted.config.vision.image_size == (384 if january else 378)
    assert converted.config.projector.hidden_features == 8192
