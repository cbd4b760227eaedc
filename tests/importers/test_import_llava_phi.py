"""LLaVA-Phi and Mipha in their own layout: a tower of transformers, mlp2x_gelu, transformers' Phi."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import SiglipVisionConfig
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from tests.conftest import train_tokenizer
from tests.importers.layouts import (
    CLIP_L,
    PHI_2_HEADS,
    SMALL_CLIP,
    SMALL_SIGLIP,
    SO400M,
    TEXT,
    Parts,
    fused_head_by_head,
)
from tests.importers.parity import QUESTION, assert_parity, imported, picture, save
from vision_lm.bench.shapes import PHI_1_5, PHI_2
from vision_lm.config import TextConfig
from vision_lm.importers.importing import check
from vision_lm.importers.llava_phi import convert
from vision_lm.importers.source import Source
from vision_lm.phi import phi_config

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
PROMPT = f"{SYSTEM} USER: <image>\n{QUESTION} ASSISTANT:"
NAMES = ("model.vision_tower.vision_model.", "model.mm_projector", "model", "lm_head")


def config(kind: str, sizes: dict[str, Any], text: TextConfig, **changes: Any) -> dict[str, Any]:
    tower = sizes | {"mm_vision_select_feature": "patch", "mm_vision_select_layer": -2}
    if kind == "siglip":
        tower = SiglipVisionConfig(**sizes).to_dict() | tower | {"vision_model_name_or_path": "siglip-so400m"}
    projector = {"mm_projector_type": "mlp2x_gelu", "mm_hidden_size": sizes["hidden_size"]}
    raw = phi_config(text).to_dict() | {"model_type": "llava_phi" if kind == "clip" else "mipha_phi"}
    return raw | {"vision_config": {"vision_tower": tower, "mm_projector": projector}} | changes


def on_a_square(image: Image.Image, colour: tuple[int, int, int]) -> Image.Image:
    """LLaVA's padding: at full size, before anything else."""
    side = max(image.size)
    square = np.empty((side, side, 3), dtype=np.uint8)
    square[:] = colour
    left, top = (side - image.width) // 2, (side - image.height) // 2
    square[top : top + image.height, left : left + image.width] = np.asarray(image)
    return Image.fromarray(square)


def clip_pixels(image: Image.Image) -> Tensor:
    crop = {"height": 42, "width": 42}
    processor = CLIPImageProcessorPil(size={"shortest_edge": 42}, crop_size=crop)
    return processor(image, return_tensors="pt")["pixel_values"]


@pytest.mark.parametrize("text", [TEXT, PHI_2_HEADS], ids=["heads of 16", "Phi-2's heads"])
@pytest.mark.parametrize("aspect", ["pad", "square"])
def test_llava_phi(tmp_path: Path, aspect: str, text: TextConfig) -> None:
    """Padded or cut, with heads of which half is rotated and with Phi-2's: 80 wide, 32 of them rotated."""
    parts = Parts("clip", SMALL_CLIP, text)
    settings = {"size": {"shortest_edge": 42}, "crop_size": {"height": 42, "width": 42}, "resample": 3}
    raw = config("clip", SMALL_CLIP, text, image_aspect_ratio=aspect)
    folder = save(tmp_path / "theirs", raw, parts.tensors(*NAMES), preprocessor_config=settings)
    vlm = imported(folder, tmp_path / "ours")
    assert vlm.config.text == text
    image = picture() if aspect == "square" else on_a_square(picture(), (122, 116, 104))
    assert_parity(vlm, parts.original(clip_pixels(image), PROMPT, train_tokenizer(), skip=1))


@pytest.mark.parametrize("text", [TEXT, PHI_2_HEADS], ids=["heads of 16", "Phi-2's heads"])
def test_mipha_with_fused_queries_keys_and_values(tmp_path: Path, text: TextConfig) -> None:
    """SigLIP, every patch of it, and the attention's matrices as transformers 4.36 and Mipha's own Phi-1.5 keep them."""
    parts = Parts("siglip", SMALL_SIGLIP, text)
    tensors = fused_head_by_head(parts.tensors(*NAMES), "model", text.num_attention_heads)
    fused = tensors["model.layers.0.self_attn.query_key_value.weight"]
    assert fused.shape == (3 * text.hidden_size, text.hidden_size)
    assert not any(".q_proj." in name for name in tensors if name.startswith("model.layers."))
    folder = save(tmp_path / "theirs", config("siglip", SMALL_SIGLIP, text), tensors)
    vlm = imported(folder, tmp_path / "ours")
    processor = SiglipImageProcessorPil(size={"height": 48, "width": 48})
    pixels = processor(picture(), return_tensors="pt")["pixel_values"]
    assert_parity(vlm, parts.original(pixels, PROMPT, train_tokenizer()))


@pytest.mark.parametrize(
    ("kind", "sizes", "text", "tokens", "fused"),
    [
        ("clip", CLIP_L, PHI_2, 576, False),
        ("siglip", SO400M, PHI_2, 729, False),
        ("siglip", SO400M, PHI_1_5, 729, False),
        ("siglip", SO400M, PHI_2, 729, True),
        ("siglip", SO400M, PHI_1_5, 729, True),
    ],
)
def test_every_tensor_of_the_public_sizes_is_used(
    kind: str, sizes: dict[str, Any], text: TextConfig, tokens: int, fused: bool
) -> None:
    """LLaVA-Phi, Mipha-3B and Mipha-1.6B on the meta device; Mipha's attention also in one matrix."""
    with torch.device("meta"):
        tensors = Parts(kind, sizes, text).tensors(*NAMES)
        if fused:
            tensors = fused_head_by_head(tensors, "model", text.num_attention_heads)
    assert any(".query_key_value." in name for name in tensors) == fused
    source = Source("full", Path("full"), config(kind, sizes, text))
    converted = convert(source, tensors, train_tokenizer())
    check(converted, source)
    assert converted.config.text == text
    grid = sizes["image_size"] // sizes["patch_size"]
    assert grid**2 - converted.config.vision.skip_patches == tokens
