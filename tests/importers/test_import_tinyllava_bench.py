"""TinyLLaVA of before its Factory, with Phi-2 and a SigLIP without its last layer, inside its file or beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from tests.conftest import train_tokenizer
from tests.importers.layouts import SMALL_SIGLIP, SO400M, TEXT, Parts
from tests.importers.parity import assert_parity, picture, save
from tests.importers.test_import_llava_phi import PROMPT, on_a_square
from vision_lm.bench.shapes import PHI_2
from vision_lm.checkpoint import read_checkpoint
from vision_lm.config import TextConfig
from vision_lm.errors import CheckpointError
from vision_lm.importers.importing import check, import_checkpoint
from vision_lm.importers.source import Source
from vision_lm.importers.tinyllava_bench import convert
from vision_lm.importers.tower_files import with_tower
from vision_lm.model import VisionLM
from vision_lm.phi import phi_config

TOWER = "model.vision_tower.vision_tower.vision_model."
NAMES = (TOWER, "model.mm_projector", "model", "lm_head")


def config(text: TextConfig = TEXT, **changes: Any) -> dict[str, Any]:
    return phi_config(text).to_dict() | {
        "model_type": "tiny_llava_phi",
        "architectures": ["TinyLlavaPhiForCausalLM"],
        "mm_vision_tower": "bczhou/TinyLLaVA-3.1B-SigLIP",
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_patch_merge_type": "flat",
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "image_aspect_ratio": "pad",
        **changes,
    }


def pixels(padded: bool = True) -> Tensor:
    image = on_a_square(picture(), (127, 127, 127)) if padded else picture()
    processor = SiglipImageProcessorPil(size={"height": 48, "width": 48})
    return processor(image, return_tensors="pt")["pixel_values"]


def split(parts: Parts) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What is not of the tower, and the tower as their class keeps it: without its last layer and its head."""
    tensors = parts.tensors(*NAMES)
    last = parts.tower.config.num_hidden_layers - 1
    cut = (f"{TOWER}encoder.layers.{last}.", f"{TOWER}head.")
    rest = {name: t for name, t in tensors.items() if not name.startswith(TOWER)}
    return rest, {n: t for n, t in tensors.items() if n.startswith(TOWER) and not n.startswith(cut)}


@pytest.mark.parametrize("aspect", ["pad", "square"])
def test_the_tower_inside(tmp_path: Path, aspect: str) -> None:
    """All that is left of the tower is read, though the config says -2; no patch is dropped, other than by the Factory."""
    parts = Parts("siglip", SMALL_SIGLIP, TEXT, head_bias=False)
    rest, tower = split(parts)
    folder = save(tmp_path / "theirs", config(image_aspect_ratio=aspect), rest | tower)
    import_checkpoint(folder, tmp_path / "ours")
    vlm = VisionLM(read_checkpoint(tmp_path / "ours"), device="cpu")
    assert vlm.prompts.tokens_per_image == 9
    given = pixels(padded=aspect == "pad")
    assert_parity(vlm, parts.original(given, PROMPT, train_tokenizer(), layer=-2))


@pytest.mark.parametrize("form", ["cut", "whole"])
@pytest.mark.parametrize("named", ["by the config", "by the option"])
def test_the_tower_beside(tmp_path: Path, form: str, named: str) -> None:
    """As their class saved it, and as Google published it, with a last layer, a head and a text tower."""
    parts = Parts("siglip", SMALL_SIGLIP, TEXT, head_bias=False)
    rest, cut = split(parts)
    tower = {name.removeprefix("model.vision_tower.vision_tower."): t for name, t in cut.items()}
    if form == "whole":
        tower = {f"vision_model.{name}": t for name, t in parts.tower.state_dict().items()}
        tower["text_model.head.bias"] = torch.zeros(3)
        assert "vision_model.head.probe" in tower
    beside = save(tmp_path / "siglip", {"model_type": "siglip_vision_model"}, tower)
    raw = config(mm_vision_tower=str(beside)) if named == "by the config" else config()
    folder = save(tmp_path / "theirs", raw, rest)
    import_checkpoint(folder, tmp_path / "ours", tower=str(beside) if named == "by the option" else None)
    vlm = VisionLM(read_checkpoint(tmp_path / "ours"), device="cpu")
    assert_parity(vlm, parts.original(pixels(), PROMPT, train_tokenizer(), layer=-2))


@pytest.mark.parametrize("form", ["inside", "beside, without a head"])
def test_every_tensor_of_the_public_sizes_is_used(form: str) -> None:
    """Of SO400M's 27 layers 26 are read, be the last one there or not."""
    with torch.device("meta"):
        parts = Parts("siglip", SO400M, PHI_2, head_bias=False)
        rest, tower = split(parts)
    if form != "inside":
        tower = {name: t for name, t in parts.tensors(*NAMES).items() if name.startswith(TOWER)}
        tower = {name: t for name, t in tower.items() if not name.startswith(f"{TOWER}head.")}
    source = Source("full", Path("full"), config(PHI_2))
    converted = convert(source, rest | tower, train_tokenizer())
    check(converted, source)
    assert converted.config.text == PHI_2
    assert (converted.config.vision.image_size, converted.config.vision.skip_patches) == (384, 0)
    assert sum(name.endswith(".attn.qkv.weight") for name in converted.table) == 26


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"mm_projector_type": "resampler"}, "projector of type 'resampler'"),
        ({"image_aspect_ratio": "anyres"}, "image_aspect_ratio 'anyres'"),
        ({"mm_use_im_start_end": True}, "mm_use_im_start_end"),
        ({"mm_vision_tower": "openai/clip-vit-large-patch14-336"}, "openai/clip.* only a SigLIP"),
        (
            {"model_type": "tiny_llava_stablelm", "architectures": ["TinyLlavaStablelmForCausalLM"]},
            "no known",
        ),
    ],
    ids=lambda value: None if isinstance(value, dict) else value[:20],
)
def test_what_is_not_supported(tmp_path: Path, changes: dict[str, Any], problem: str) -> None:
    rest, tower = split(Parts("siglip", SMALL_SIGLIP, TEXT, head_bias=False))
    folder = save(tmp_path / "theirs", config(**changes), rest | tower)
    with pytest.raises(CheckpointError, match=problem):
        import_checkpoint(folder, tmp_path / "ours")


def test_a_tower_that_is_not_here(tmp_path: Path) -> None:
    """The line says what is missing and which option names another; one that is inside is not looked for."""
    rest, tower = split(Parts("siglip", SMALL_SIGLIP, TEXT, head_bias=False))
    folder = save(tmp_path / "theirs", config(mm_vision_tower="/root/siglip"), rest)
    with pytest.raises(
        CheckpointError, match="mm_vision_tower is /root/siglip, which is not here; .* --tower"
    ):
        import_checkpoint(folder, tmp_path / "ours")
    source = Source("theirs", folder, config(mm_vision_tower="/root/siglip"))
    assert with_tower(source, rest | tower, None) == rest | tower
