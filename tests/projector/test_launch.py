"""Training in several processes is the training of one: the same samples, the same weights."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from projector.data.samples import Sample, Turn, write_jsonl
from vision_lm.checkpoint import Checkpoint, read_checkpoint, write_checkpoint

RECIPE = """\
checkpoint: {folder}/start
out: {folder}/{out}
sources: [{{path: {folder}/train.jsonl}}]
language_model: full
steps: 3
batch_size: 2
accumulate: {accumulate}
learning_rate: 0.003
precision: 'no'
"""


@pytest.mark.slow
def test_two_processes_learn_what_one_does_that_accumulates_two_batches(
    trunk_checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """The batches are shared out and the gradients averaged, nothing else may differ. torchrun is what
    `accelerate launch` starts where there are GPUs; on processors accelerate itself would need MPI.
    """
    c = trunk_checkpoint
    write_checkpoint(tmp_path / "start", c.config, c.tensors, c.tokenizer)
    samples = []
    for number in range(8):
        Image.new("RGB", (40, 40), (30 * number, 255 - 20 * number, 90)).save(tmp_path / f"{number}.png")
        samples.append(Sample((tmp_path / f"{number}.png",), (Turn("How many?", str(number)),)))
    write_jsonl(tmp_path / "train.jsonl", samples)
    trained = {}
    for out, accumulate, launch in (
        ("one", 2, []),
        ("two", 1, ["-m", "torch.distributed.run", "--nproc_per_node", "2"]),
    ):
        recipe = tmp_path / f"{out}.yaml"
        recipe.write_text(RECIPE.format(folder=tmp_path, out=out, accumulate=accumulate))
        command = [sys.executable, *launch, "-m", "vision_lm", "train", "instruct", str(recipe)]
        environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
        trained[out] = read_checkpoint(tmp_path / out).tensors
    for name, tensor in trained["one"].items():
        if tensor.is_floating_point():
            torch.testing.assert_close(trained["two"][name], tensor, rtol=1e-3, atol=1e-4, msg=name)
    changed = [name for name, tensor in trained["two"].items() if not torch.equal(tensor, c.tensors[name])]
    assert any(name.startswith("phi.") for name in changed)
