"""An import needs little more memory than the files are large: they are mapped, and few tensors are remade."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.conftest import text_config, train_tokenizer
from tests.importers.layouts import CLIP_L, Parts
from tests.importers.test_import_llava_phi import NAMES, config

TEXT = text_config(
    vocab_size=4096,
    hidden_size=1024,
    intermediate_size=4096,
    num_hidden_layers=12,
    num_attention_heads=16,
    num_key_value_heads=16,
    max_position_embeddings=2048,
)
# Imports what the import imports, then measures what the rest adds at its highest, in bytes.
MEASURE = """
import sys
from pathlib import Path
import open_clip, transformers
from transformers import PhiConfig, PhiForCausalLM
from timm.models.vision_transformer import VisionTransformer
from vision_lm.importers.importing import import_checkpoint
from vision_lm.importers.llava_phi import convert

def memory(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))

before = memory("VmRSS")
import_checkpoint(sys.argv[1], Path(sys.argv[2]))
print(memory("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc")
def test_memory_is_at_most_a_fifth_above_the_size(tmp_path: Path) -> None:
    with torch.device("meta"):
        shapes = Parts("clip", CLIP_L, TEXT).tensors(*NAMES)
    folder = tmp_path / "theirs"
    folder.mkdir()
    tensors = {name: torch.full(one.shape, 0.01, dtype=torch.float16) for name, one in shapes.items()}
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config("clip", CLIP_L, TEXT)))
    train_tokenizer().save(str(folder / "tokenizer.json"))
    size = (folder / "model.safetensors").stat().st_size
    assert size > 900e6  # so large that the process's own, some 140 MiB, is little beside it
    command = [sys.executable, "-c", MEASURE, str(folder), str(tmp_path / "ours")]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(ran.stdout) <= 1.2 * size
