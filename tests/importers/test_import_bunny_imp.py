"""Bunny (merged, and as LoRA weights beside their base and tower) and Imp, in their own layouts."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from tests.conftest import train_tokenizer
from tests.importers.layouts import (
    PHI_2_HEADS,
    SMALL_SIGLIP,
    SO400M,
    TEXT,
    Parts,
    mixer_config,
    mixer_names,
)
from tests.importers.parity import assert_parity, picture, save
from tests.importers.test_import_llava_phi import PROMPT, on_a_square
from vision_lm.bench.shapes import PHI_1_5, PHI_2
from vision_lm.checkpoint import read_checkpoint
from vision_lm.config import TextConfig
from vision_lm.errors import CheckpointError
from vision_lm.importers import bunny, imp
from vision_lm.importers.importing import check, import_checkpoint
from vision_lm.importers.source import Source
from vision_lm.model import VisionLM
from vision_lm.phi import phi_config

BUNNY = ("model.vision_tower.vision_tower.vision_model.", "model.mm_projector", "model", "lm_head")


def bunny_config(text: Any = TEXT) -> dict[str, Any]:
    return phi_config(text).to_dict() | {
        "model_type": "bunny-phi",
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_tower": "/somewhere/else/siglip-so400m-patch14-384",
        "image_aspect_ratio": "pad",
        "use_mm_proj": True,
    }


def pixels(padded: bool) -> Tensor:
    image = on_a_square(picture(), (127, 127, 127)) if padded else picture()
    return SiglipImageProcessorPil(size={"height": 48, "width": 48})(image, return_tensors="pt")[
        "pixel_values"
    ]


@pytest.mark.parametrize("tower", ["whole", "cut"])
@pytest.mark.parametrize(
    "rows", [416, train_tokenizer().get_vocab_size()], ids=["spare rows", "no spare row"]
)
def test_bunny_merged(tmp_path: Path, rows: int, tower: str) -> None:
    """Padded with grey, all patches, no bias at the output; cut to the tokenizer's size, it gets a row for the picture.

    Bunny's first code (February and March 2024) deleted the tower's last layer and its head: what is left is read then.
    """
    text = dataclasses.replace(TEXT, vocab_size=rows)
    parts = Parts("siglip", SMALL_SIGLIP, text, head_bias=False)
    tensors = parts.tensors(*BUNNY)
    if tower == "cut":
        last = parts.tower.config.num_hidden_layers - 1
        cut = (f"{BUNNY[0]}encoder.layers.{last}.", f"{BUNNY[0]}head.")
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(cut)}
    folder = save(tmp_path / "theirs", bunny_config(text), tensors)
    import_checkpoint(folder, tmp_path / "ours")
    vlm = VisionLM(read_checkpoint(tmp_path / "ours"), device="cpu")
    assert vlm.config.text.vocab_size == max(rows, train_tokenizer().get_vocab_size() + 1)
    assert_parity(vlm, parts.original(pixels(padded=True), PROMPT, train_tokenizer()))


def test_bunny_as_lora(tmp_path: Path) -> None:
    """The base's weights plus alpha / r times B A; the base's bias at the output is none of Bunny's."""
    parts = Parts("siglip", SMALL_SIGLIP, TEXT)
    tower = {f"vision_model.{name}": t for name, t in parts.tower.state_dict().items()}
    save(tmp_path / "tower", {"model_type": "siglip"}, tower | {"text_model.head.bias": torch.zeros(3)})
    folder = save_lora(tmp_path, parts, bunny_config())

    import_checkpoint(folder, tmp_path / "ours", tower=str(tmp_path / "tower"))
    vlm = VisionLM(read_checkpoint(tmp_path / "ours"), device="cpu")
    assert_parity(vlm, parts.original(pixels(padded=True), PROMPT, train_tokenizer()))


def save_lora(root: Path, parts: Parts, config: dict[str, Any]) -> Path:
    """A Bunny as LoRA weights in `root`/lora, beside its base in `root`/base; the parts' Phi is then the merged one."""
    named = parts.tensors(*BUNNY)
    base = {name: t.clone() for name, t in parts.phi.state_dict().items()}
    save(root / "base", phi_config(TEXT).to_dict(), base)
    folder = root / "lora"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    settings = {"r": 4, "lora_alpha": 8, "bias": "none", "base_model_name_or_path": str(root / "base")}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    torch.manual_seed(3)
    adapter: dict[str, Tensor] = {}
    for layer in range(TEXT.num_hidden_layers):
        for name in ("self_attn.q_proj", "self_attn.dense", "mlp.fc1", "mlp.fc2"):
            stem = f"model.layers.{layer}.{name}"
            rows, columns = base[f"{stem}.weight"].shape
            low, high = torch.randn(4, columns) * 0.1, torch.randn(rows, 4) * 0.1
            adapter[f"base_model.model.{stem}.lora_A.weight"] = low
            adapter[f"base_model.model.{stem}.lora_B.weight"] = high
            parts.phi.get_parameter(f"{stem}.weight").data += 2.0 * high @ low
    save_file(adapter, folder / "adapter_model.safetensors")
    projector = {f"base_model.model.{name}": t for name, t in named.items() if "mm_projector" in name}
    torch.save(projector, folder / "non_lora_trainables.bin")
    parts.phi.lm_head.bias.data.zero_()
    return folder


def test_lora_weights_are_read_again_when_their_base_or_tower_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`load()` keeps what it imported, of three folders: with another of any of them it is another model."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    parts = Parts("siglip", SMALL_SIGLIP, TEXT)
    tower = {f"vision_model.{name}": t for name, t in parts.tower.state_dict().items()}
    save(tmp_path / "siglip", {"model_type": "siglip"}, tower)
    folder = save_lora(tmp_path, parts, bunny_config() | {"mm_vision_tower": str(tmp_path / "siglip")})
    first = read_checkpoint(folder).tensors
    for name, ours, theirs in (
        ("base", "phi.model.final_layernorm.bias", "model.final_layernorm.bias"),
        (
            "siglip",
            "encoder.tower.trunk.patch_embed.proj.bias",
            "vision_model.embeddings.patch_embedding.bias",
        ),
    ):
        changed = load_file(tmp_path / name / "model.safetensors")
        changed[theirs] += 1.0
        save_file(changed, tmp_path / name / "model.safetensors")
        again = read_checkpoint(folder).tensors
        torch.testing.assert_close(again[ours], first[ours] + 1.0)


@pytest.mark.parametrize("text", [TEXT, PHI_2_HEADS], ids=["heads of 16", "Phi-2's heads"])
@pytest.mark.parametrize("names", ["transformers", "mixer"])
def test_imp(tmp_path: Path, names: str, text: TextConfig) -> None:
    """The tower's last layer is not in the file; an answer ends with the text </s>."""
    parts = Parts("siglip", SMALL_SIGLIP, text)
    tensors, raw = imp_layout(parts, names, text)
    vlm_folder = save(tmp_path / "theirs", raw, tensors)
    import_checkpoint(vlm_folder, tmp_path / "ours")
    vlm = VisionLM(read_checkpoint(tmp_path / "ours"), device="cpu")
    assert_parity(vlm, parts.original(pixels(padded=False), PROMPT, train_tokenizer()), stop=("</s>",))


def imp_layout(parts: Parts, names: str, text: Any = TEXT) -> tuple[dict[str, Tensor], dict[str, Any]]:
    body = "model" if names == "transformers" else "transformer"
    tower = f"{body}.vision_tower.vision_tower.vision_model."
    tensors = parts.tensors(tower, f"{body}.mm_projector", "model", "lm_head")
    raw = phi_config(text).to_dict() | {
        "model_type": "imp",
        "mm_vision_tower": "google/siglip-so400m-patch14-384",
    }
    if names == "mixer":
        phi = parts.phi.state_dict()
        tensors = {name: t for name, t in tensors.items() if name not in phi}
        tensors |= mixer_names(phi, text.num_hidden_layers, body, "lm_head")
        raw = mixer_config(text) | {"model_type": "imp"}
    last = len(parts.tower.state_dict()) and parts.tower.config.num_hidden_layers - 1
    dropped = (f"{tower}encoder.layers.{last}.", f"{tower}post_layernorm.", f"{tower}head.")
    return {name: t for name, t in tensors.items() if not name.startswith(dropped)}, raw


def adapter(root: Path, parts: Parts) -> dict[str, Tensor]:
    """As Bunny trains: rank 128 at every linear layer of the Phi."""
    (root / "adapter_config.json").write_text('{"r": 128, "lora_alpha": 256, "bias": "none"}')
    added: dict[str, Tensor] = {}
    for name, tensor in parts.phi.state_dict().items():
        if name.startswith("model.layers.") and tensor.ndim == 2:
            stem = f"base_model.model.{name.removesuffix('.weight')}"
            added[f"{stem}.lora_A.weight"] = tensor.new_empty(128, tensor.shape[1])
            added[f"{stem}.lora_B.weight"] = tensor.new_empty(tensor.shape[0], 128)
    return added


@pytest.mark.parametrize(("text", "form"), [(PHI_1_5, "merged"), (PHI_2, "merged"), (PHI_1_5, "LoRA")])
def test_every_tensor_of_bunnys_public_sizes_is_used(text: TextConfig, form: str, tmp_path: Path) -> None:
    """bunny-phi-1.5-siglip merged, Bunny-v1.0-3B, and bunny-phi-1.5-siglip-lora with its base, on the meta device."""
    with torch.device("meta"):
        parts = Parts("siglip", SO400M, text, head_bias=form == "LoRA")
        tensors = parts.tensors(*BUNNY)
        if form == "LoRA":
            tensors |= adapter(tmp_path, parts)
    source = Source("full", tmp_path, bunny_config(text))
    converted = bunny.convert(source, tensors, train_tokenizer())
    made = check(converted, source)
    assert converted.config.text == text
    assert (converted.config.vision.image_size, converted.config.vision.skip_patches) == (384, 0)
    assert sum(name.endswith(".attn.qkv.weight") for name in converted.table) == 26
    merged = [name for name, one in converted.table.items() if any(".lora_" in each for each in one.names)]
    assert len(merged) == (6 * text.num_hidden_layers if form == "LoRA" else 0)
    assert made["phi.lm_head.bias"].shape == (text.vocab_size,), "zeros: Bunny has none"


@pytest.mark.parametrize("names", ["transformers", "mixer"])
def test_every_tensor_of_imps_public_sizes_is_used(names: str) -> None:
    """imp-v1-3b, its later releases and its first, on the meta device."""
    text = PHI_2
    with torch.device("meta"):
        parts = Parts("siglip", SO400M, text)
        tensors, raw = imp_layout(parts, names, text)
    source = Source("full", Path("full"), raw)
    converted = imp.convert(source, tensors, train_tokenizer())
    check(converted, source)
    assert converted.config.text == text
    assert converted.config.vision.image_size == 384
    assert sum(name.endswith(".attn.qkv.weight") for name in converted.table) == 26


def test_ranks_of_their_own_are_refused(tmp_path: Path) -> None:
    """Merged with the common rank's scale, these matrices would be wrong without a word."""
    folder = save_lora(tmp_path, Parts("siglip", SMALL_SIGLIP, TEXT), bunny_config())
    path = folder / "adapter_config.json"
    settings = json.loads(path.read_text())
    for key in ("rank_pattern", "alpha_pattern"):
        path.write_text(json.dumps(settings | {key: {"fc1": 8}}))
        with pytest.raises(CheckpointError, match=f"{key} .* is not supported"):
            import_checkpoint(folder, tmp_path / "ours", tower=str(saved_tower(tmp_path)))


def test_a_base_that_has_only_a_pickle(tmp_path: Path) -> None:
    """As Phi's first releases: read as it would be by itself."""
    parts = Parts("siglip", SMALL_SIGLIP, TEXT)
    folder = save_lora(tmp_path, parts, bunny_config())
    base = tmp_path / "base"
    torch.save(load_file(base / "model.safetensors"), base / "pytorch_model.bin")
    (base / "model.safetensors").unlink()
    import_checkpoint(folder, tmp_path / "ours", tower=str(saved_tower(tmp_path, parts)))
    vlm = VisionLM(read_checkpoint(tmp_path / "ours"), device="cpu")
    assert_parity(vlm, parts.original(pixels(padded=True), PROMPT, train_tokenizer()))


def saved_tower(root: Path, parts: Parts | None = None) -> Path:
    parts = parts or Parts("siglip", SMALL_SIGLIP, TEXT)
    tower = {f"vision_model.{name}": t for name, t in parts.tower.state_dict().items()}
    return save(root / "tower", {"model_type": "siglip"}, tower)
