"""Bunny with EVA02-CLIP-L: LoRA weights beside EVA-CLIP's file, as published, and merged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms

from tests.conftest import train_tokenizer
from tests.importers.eva import EVA_L, SMALL_EVA, Turn
from tests.importers.layouts import TEXT, Parts
from tests.importers.parity import assert_parity, close, imported, picture, save
from tests.importers.test_import_bunny_imp import adapter, bunny_config, save_lora
from tests.importers.test_import_llava_phi import PROMPT, on_a_square
from tests.importers.test_import_refusals import Bomb
from vision_lm.bench.shapes import PHI_1_5, PHI_2
from vision_lm.checkpoint import read_checkpoint
from vision_lm.config import TextConfig
from vision_lm.errors import CheckpointError, ExportError
from vision_lm.exporters.tower import read_tower
from vision_lm.importers.bunny import convert
from vision_lm.importers.eva_clip import FILE
from vision_lm.importers.importing import check, import_checkpoint
from vision_lm.importers.source import Source
from vision_lm.model import VisionLM
from vision_lm.skeleton import expected_tensors

NAMES = ("model.vision_tower.vision_tower.model.", "model.mm_projector", "model", "lm_head")


def config(text: TextConfig = TEXT, **changes: Any) -> dict[str, Any]:
    return bunny_config(text) | {"mm_vision_tower": f"/somewhere/else/{FILE}"} | changes


def pixels(image: Image.Image) -> Tensor:
    """Bunny's EvaClipImageTrainProcessor, which is torchvision's."""
    steps = transforms.Compose(
        [
            transforms.Resize(56, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(56),
            transforms.ToTensor(),
            transforms.Normalize((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
        ]
    )
    return steps(image)[None]


def padded() -> Tensor:
    return pixels(on_a_square(picture(), (122, 116, 104)))


def save_eva_clip(path: Path, parts: Parts, wrapped: bool = False) -> Path:
    """EVA-CLIP's own file: a pickle, with a text tower; from a training, within "module" and beside other things."""
    whole = {f"visual.{name}": tensor for name, tensor in parts.tower.state_dict().items()}
    whole |= {"text.token_embedding.weight": torch.zeros(3, 2), "logit_scale": torch.tensor(1.0)}
    if wrapped:
        wrap = {"epoch": 6, "module": {f"module.{name}": tensor for name, tensor in whole.items()}}
        torch.save(wrap, path)
    else:
        torch.save(whole, path)
    return path


@pytest.mark.parametrize("given", ["a file", "its folder", "a training's file", "named by the config"])
def test_lora_beside_eva_clip(tmp_path: Path, given: str) -> None:
    """As published: nothing of the tower is in Bunny's own files, and its Phi has no bias at the output."""
    parts = Parts("eva", SMALL_EVA, TEXT)
    path = save_eva_clip(tmp_path / FILE, parts, wrapped=given == "a training's file")
    by_config = given == "named by the config"
    folder = save_lora(tmp_path, parts, config(mm_vision_tower=str(path)) if by_config else config())
    tower = {"its folder": str(tmp_path), "named by the config": None}.get(given, str(path))
    import_checkpoint(folder, tmp_path / "ours", tower=tower)
    vlm = VisionLM(read_checkpoint(tmp_path / "ours"), device="cpu")
    original = parts.original(padded(), PROMPT, train_tokenizer(), skip=1)
    assert vlm.prompts.tokens_per_image == 16
    assert_parity(vlm, original)


@pytest.mark.parametrize("aspect", ["pad", "square"])
def test_merged(tmp_path: Path, aspect: str) -> None:
    """With the last layer, head and rotation tables, which are all of no use; padded with CLIP's mean, or its centre.

    Of the noise in the test's picture, scaled up, four pixels in a thousand are one level of 255 off in the centre.
    """
    parts = Parts("eva", SMALL_EVA, TEXT, head_bias=False)
    tensors = parts.tensors(*NAMES)
    assert "model.vision_tower.vision_tower.model.blocks.2.attn.rope.freqs_cos" in tensors
    folder = save(tmp_path / "theirs", config(image_aspect_ratio=aspect), tensors)
    vlm = imported(folder, tmp_path / "ours")
    given, rounded = (padded(), 1e-3) if aspect == "pad" else (pixels(picture()), 5e-3)
    assert_parity(vlm, parts.original(given, PROMPT, train_tokenizer(), skip=1), rounded=rounded)


def test_positions_are_counted_as_sixteen_a_side(tmp_path: Path) -> None:
    """4 patches a side span 16 places: with a place for each the features are others."""
    parts = Parts("eva", SMALL_EVA, TEXT, head_bias=False)
    vlm = imported(save(tmp_path / "theirs", config(), parts.tensors(*NAMES)), tmp_path / "ours")
    ours = vlm.encoder(padded()).patches
    assert close(ours, parts.original(padded(), PROMPT, train_tokenizer(), skip=1).features)
    for name, table in Turn(4, span=4).named_buffers():
        parts.tower.rope.get_buffer(name).copy_(table)
    other = parts.original(padded(), PROMPT, train_tokenizer(), skip=1).features
    assert (other - ours).abs().max() > 0.01 * ours.abs().max()


@pytest.mark.parametrize(("text", "form"), [(PHI_1_5, "merged"), (PHI_1_5, "LoRA"), (PHI_2, "LoRA")])
def test_every_tensor_of_the_public_sizes_is_used(text: TextConfig, form: str, tmp_path: Path) -> None:
    """On the meta device; our tower then is, name by name, the first 23 layers of timm's, which open_clip publishes."""
    with torch.device("meta"):
        published = timm.create_model("eva02_large_patch14_clip_336").state_dict()
        parts = Parts("eva", EVA_L, text, head_bias=form == "LoRA")
        tensors = parts.tensors(*NAMES)
        if form == "LoRA":
            tensors |= adapter(tmp_path, parts)
    source = Source("full", tmp_path, config(text))
    converted = convert(source, tensors, train_tokenizer())
    check(converted, source)
    vision = converted.config.vision
    assert converted.config.text == text
    assert (vision.image_size, vision.skip_patches, vision.features) == (336, 0, (-2,))
    prefix = "encoder.tower.trunk."
    ours = {n.removeprefix(prefix): s for n, s in expected_tensors(converted.config).items() if prefix in n}
    after = ("blocks.23.", "norm.", "head.")
    assert ours == {name: t.shape for name, t in published.items() if not name.startswith(after)}


def test_what_is_no_eva_clip(tmp_path: Path) -> None:
    """One line each, with what to do; a pickle is never run."""
    parts = Parts("eva", SMALL_EVA, TEXT)
    folder = save_lora(tmp_path, parts, config())
    with pytest.raises(
        CheckpointError, match=r"EVA02_CLIP_L_336_psz14_s6B\.pt, which is not here; .* --tower"
    ):
        import_checkpoint(folder, tmp_path / "ours")
    for content, problem in (
        (Bomb(tmp_path / "ran"), "a pickle that runs code is refused"),
        ({"text.positional_embedding": torch.zeros(2)}, r"no tensor named visual\.\*"),
        ({"visual.pos_embed": torch.zeros(1, 17, 128)}, "missing tensors: .*patch_embed.proj.weight"),
        ({"module": [1, 2]}, "not a table of tensors"),
    ):
        torch.save(content, tmp_path / "tower.pt")
        with pytest.raises(CheckpointError, match=problem):
            import_checkpoint(folder, tmp_path / "ours", tower=str(tmp_path / "tower.pt"))
    with pytest.raises(CheckpointError, match="no such file"):
        import_checkpoint(folder, tmp_path / "ours", tower=str(folder))
    assert not (tmp_path / "ran").exists() and not (tmp_path / "ours").exists()


def test_it_is_not_exported_as_a_clip(tmp_path: Path) -> None:
    """transformers' Llava has no such tower in its CLIP and SigLIP."""
    parts = Parts("eva", SMALL_EVA, TEXT, head_bias=False)
    vlm = imported(save(tmp_path / "theirs", config(), parts.tensors(*NAMES)), tmp_path / "ours")
    with pytest.raises(ExportError, match="the image tower eva, which is neither"):
        read_tower(vlm.config.vision, vlm.checkpoint.tensors)
