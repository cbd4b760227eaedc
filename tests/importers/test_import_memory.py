"""An import needs little more memory than the files are large: they are mapped, and what is remade is written at once."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.conftest import text_config, train_tokenizer
from tests.importers.layouts import CLIP_L, SMALL_SIGLIP, Parts, fused_head_by_head
from tests.importers.test_import_bunny_imp import BUNNY, adapter, bunny_config
from tests.importers.test_import_llava_phi import NAMES, config
from vision_lm.phi import phi_config

TEXT = text_config(
    vocab_size=4096,
    hidden_size=1024,
    intermediate_size=4096,
    num_hidden_layers=12,
    num_attention_heads=16,
    num_key_value_heads=16,
    max_position_embeddings=2048,
)
DEEP = dataclasses.replace(
    TEXT, num_hidden_layers=36
)  # so that the language model is most of it, as at full size
# Imports what the import imports, then measures what the rest adds at its highest, in bytes.
MEASURE = """
import sys
from pathlib import Path
import open_clip, transformers
from transformers import PhiConfig, PhiForCausalLM
from timm.models.vision_transformer import VisionTransformer
from vision_lm.importers import bunny, llava_phi
from vision_lm.importers.importing import import_checkpoint

def memory(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))

before = memory("VmRSS")
import_checkpoint(sys.argv[1], Path(sys.argv[2]))
print(memory("VmHWM") - before)
"""
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc"),
]


def save(folder: Path, raw: dict[str, Any], tensors: dict[str, Tensor], name: str = "model") -> int:
    """Write float16 of these shapes, and return how many bytes."""
    folder.mkdir(exist_ok=True)
    filled = {name: torch.full(one.shape, 0.01, dtype=torch.float16) for name, one in tensors.items()}
    save_file(filled, folder / f"{name}.safetensors")
    (folder / "config.json").write_text(json.dumps(raw))
    train_tokenizer().save(str(folder / "tokenizer.json"))
    return (folder / f"{name}.safetensors").stat().st_size


def check_memory(folder: Path, out: Path, size: int) -> None:
    """At most a fifth above the size."""
    assert size > 850e6  # so large that the process's own, some 140 MiB, is little beside it
    command = [sys.executable, "-c", MEASURE, str(folder), str(out)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(ran.stdout) <= 1.2 * size


def test_memory_is_at_most_a_fifth_above_the_size(tmp_path: Path) -> None:
    with torch.device("meta"):
        shapes = Parts("clip", CLIP_L, TEXT).tensors(*NAMES)
    size = save(tmp_path / "theirs", config("clip", CLIP_L, TEXT), shapes)
    check_memory(tmp_path / "theirs", tmp_path / "ours", size)


def test_nor_where_queries_keys_and_values_are_taken_apart(tmp_path: Path) -> None:
    """Mipha's one matrix of all three, head by head: none of its parts can be mapped as it lies in the file."""
    with torch.device("meta"):
        named = Parts("siglip", SMALL_SIGLIP, DEEP).tensors(*NAMES)
        shapes = fused_head_by_head(named, "model", DEEP.num_attention_heads)
    size = save(tmp_path / "theirs", config("siglip", SMALL_SIGLIP, DEEP), shapes)
    check_memory(tmp_path / "theirs", tmp_path / "ours", size)


def test_nor_where_lora_weights_are_merged(tmp_path: Path) -> None:
    """Rank 128 at every linear layer, as Bunny publishes them: all of the language model is made anew."""
    with torch.device("meta"):
        parts = Parts("siglip", SMALL_SIGLIP, DEEP)
    base = parts.phi.state_dict()
    tower = {f"vision_model.{name}": tensor for name, tensor in parts.tower.state_dict().items()}
    (tmp_path / "lora").mkdir()
    added = adapter(tmp_path / "lora", parts)
    raw = bunny_config(DEEP) | {"mm_vision_tower": str(tmp_path / "siglip")}
    size = save(tmp_path / "base", phi_config(DEEP).to_dict(), base)
    size += save(tmp_path / "siglip", {"model_type": "siglip"}, tower)
    size += save(tmp_path / "lora", raw, added, "adapter_model")
    named = parts.tensors(*BUNNY)
    projector = {
        f"base_model.model.{name}": torch.zeros(t.shape) for name, t in named.items() if "mm_proj" in name
    }
    torch.save(projector, tmp_path / "lora" / "non_lora_trainables.bin")
    settings = {
        "r": 128,
        "lora_alpha": 256,
        "bias": "none",
        "base_model_name_or_path": str(tmp_path / "base"),
    }
    (tmp_path / "lora" / "adapter_config.json").write_text(json.dumps(settings))
    check_memory(tmp_path / "lora", tmp_path / "ours", size)
