"""TinyLLaVA Factory's Phi-2 checkpoints in their own layout, with CLIP and with SigLIP."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CLIPVisionConfig, SiglipVisionConfig
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from tests.conftest import train_tokenizer
from tests.importers.layouts import CLIP_L, SMALL_CLIP, SMALL_SIGLIP, SO400M, TEXT, Parts
from tests.importers.parity import assert_parity, imported, picture, save
from tests.importers.test_import_llava_phi import PROMPT, clip_pixels
from vision_lm.bench.shapes import PHI_2
from vision_lm.config import TextConfig
from vision_lm.importers.importing import check
from vision_lm.importers.source import Source
from vision_lm.importers.tinyllava import convert
from vision_lm.phi import phi_config

NAMES = (
    "vision_tower._vision_tower.vision_model.",
    "connector._connector",
    "language_model.model",
    "language_model.lm_head",
)


def config(kind: str, sizes: dict[str, Any], text: TextConfig) -> dict[str, Any]:
    vision: Any = CLIPVisionConfig(**sizes) if kind == "clip" else SiglipVisionConfig(**sizes)
    return {
        "model_type": "tinyllava",
        "architectures": ["TinyLlavaForConditionalGeneration"],
        "connector_type": "mlp2x_gelu",
        "text_config": phi_config(text).to_dict(),
        "vision_config": vision.to_dict(),
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "patch",
        "image_aspect_ratio": "square",
        "auto_map": {"AutoModelForCausalLM": "modeling_tinyllava_phi.TinyLlavaForConditionalGeneration"},
    }


def test_siglip_loses_its_first_patch(tmp_path: Path) -> None:
    """What was dropped in training is dropped here: with all nine patches nothing below is equal."""
    parts = Parts("siglip", SMALL_SIGLIP, TEXT)
    folder = save(tmp_path / "theirs", config("siglip", SMALL_SIGLIP, TEXT), parts.tensors(*NAMES))
    vlm = imported(folder, tmp_path / "ours")
    assert vlm.prompts.tokens_per_image == 8
    pixels = SiglipImageProcessorPil(size={"height": 48, "width": 48})(picture(), return_tensors="pt")
    assert_parity(vlm, parts.original(pixels["pixel_values"], PROMPT, train_tokenizer(), skip=1))


def test_clip(tmp_path: Path) -> None:
    parts = Parts("clip", SMALL_CLIP, TEXT)
    folder = save(tmp_path / "theirs", config("clip", SMALL_CLIP, TEXT), parts.tensors(*NAMES))
    vlm = imported(folder, tmp_path / "ours")
    assert_parity(vlm, parts.original(clip_pixels(picture()), PROMPT, train_tokenizer(), skip=1))


@pytest.mark.parametrize(("kind", "sizes", "tokens"), [("clip", CLIP_L, 576), ("siglip", SO400M, 728)])
def test_every_tensor_of_the_public_sizes_is_used(kind: str, sizes: dict[str, Any], tokens: int) -> None:
    with torch.device("meta"):
        tensors = Parts(kind, sizes, PHI_2).tensors(*NAMES)
    source = Source("full", Path("full"), config(kind, sizes, PHI_2))
    converted = convert(source, tensors, train_tokenizer())
    check(converted, source)
    grid = sizes["image_size"] // sizes["patch_size"]
    assert grid**2 - converted.config.vision.skip_patches == tokens
