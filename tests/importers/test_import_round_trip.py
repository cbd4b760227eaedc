"""Out to transformers' Llava and in again: nothing is lost on the way, and what was imported can be exported."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import VIT, random_checkpoint, text_config
from vision_lm.checkpoint import Checkpoint, read_checkpoint
from vision_lm.config import VisionConfig
from vision_lm.errors import ExportError
from vision_lm.exporters.hf_llava import write_hf_llava
from vision_lm.exporters.transformers_runtime import TransformersLlava
from vision_lm.exporters.verify import compare
from vision_lm.importers.importing import import_checkpoint
from vision_lm.importers.templates import vicuna
from vision_lm.model import VisionLM

SIGLIP = dataclasses.replace(
    VIT,
    kind="siglip",
    tower={**VIT.tower, "act_kwargs": {"approximate": "tanh"}},
    features=(-1,),
    skip_patches=1,
    resize="pad_first",
    fill=(127 / 255,) * 3,
)


def checkpoint_of(vision: VisionConfig, prompt: dict[str, Any] | None = None) -> Checkpoint:
    """Random weights; inside as wide as the language model, so that the export pads nothing."""
    made = random_checkpoint(vision, text_config(num_key_value_heads=4, max_position_embeddings=512))
    width = made.config.text.hidden_size
    projector = dataclasses.replace(made.config.projector, hidden_features=width)
    torch.manual_seed(7)
    features = projector.in_features
    tensors = made.tensors | {
        "projector.patches.0.weight": 0.2 * torch.randn(width, features),
        "projector.patches.0.bias": torch.randn(width),
        "projector.patches.2.weight": 0.2 * torch.randn(width, width),
    }
    template = vicuna(415, 0) if prompt is None else dataclasses.replace(made.config.prompt, **prompt)
    config = dataclasses.replace(made.config, projector=projector, prompt=template)
    return dataclasses.replace(made, config=config, tensors=tensors)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_out_and_in_again(kind: str, tmp_path: Path) -> None:
    """Every tensor bit for bit, the head's bias among them; the prompt, the tokenizer, the way to a square."""
    if kind == "clip":
        before = checkpoint_of(dataclasses.replace(VIT, quick_gelu=True, resize="crop_floor"), prompt={})
    else:
        before = checkpoint_of(SIGLIP)
    assert before.tensors["phi.lm_head.bias"].any()
    write_hf_llava(before, tmp_path / "theirs", keep_head_bias=True)
    import_checkpoint(tmp_path / "theirs", tmp_path / "ours")
    after = read_checkpoint(tmp_path / "ours")
    assert after.tensors.keys() == before.tensors.keys()
    assert all(torch.equal(tensor, after.tensors[name]) for name, tensor in before.tensors.items())
    assert after.config.text == before.config.text
    assert after.tokenizer.get_vocab() == before.tokenizer.get_vocab()
    for key in ("image_token_id", "eos_token_id", "question", "answer", "image", "system"):
        assert getattr(after.config.prompt, key) == getattr(before.config.prompt, key), key
    for key in ("image_size", "mean", "std", "quick_gelu", "resize", "interpolation", "kind", "skip_patches"):
        assert getattr(after.config.vision, key) == getattr(before.config.vision, key), key


def test_what_was_imported_is_exported_with_its_prompt(tmp_path: Path) -> None:
    """A SigLIP without its first patch, pictures inside the prompt: transformers sees the same ids and logits."""
    checkpoint = checkpoint_of(SIGLIP)
    write_hf_llava(checkpoint, tmp_path / "out")
    vlm = VisionLM(checkpoint, "cpu", "float32")
    report = compare(vlm, TransformersLlava(tmp_path / "out", vlm.encoder), "", [], 1.0, count=4)
    assert report.equal_prompts == 1.0
    assert report.largest_logit_difference is not None and report.largest_logit is not None
    assert report.largest_logit_difference <= 1e-4 * report.largest_logit


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"normed": True}, "last LayerNorm"), ({"skip_patches": 2}, "2 patches that are left out")],
)
def test_what_no_llava_computes_is_refused(changes: dict[str, Any], named: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=named):
        write_hf_llava(checkpoint_of(dataclasses.replace(SIGLIP, **changes)), tmp_path / "out")


def test_a_first_token_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="begins with a token"):
        write_hf_llava(checkpoint_of(VIT, prompt={"bos_token_id": 0}), tmp_path / "out")
