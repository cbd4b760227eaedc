"""Training as it is started for real: killed and resumed, and in several processes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from projector import run_state
from projector.data.samples import QA, Sample, write_jsonl
from tests.projector.colour_run import write_start
from vision_lm.checkpoint import Checkpoint, read_checkpoint

RECIPE = """\
checkpoint: {folder}/start
out: {folder}/{out}
sources: [{{path: {folder}/train.jsonl}}]
language_model: full
steps: {steps}
batch_size: 2
accumulate: {accumulate}
learning_rate: 0.003
precision: 'no'
save_every: {save_every}
"""
ENVIRONMENT = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}


@pytest.fixture
def folder(trunk_checkpoint: Checkpoint, tmp_path: Path) -> Path:
    """A checkpoint to start from, and eight pictures to count among twice as many samples without one."""
    write_start(tmp_path, trunk_checkpoint)
    samples = []
    for number in range(8):
        Image.new("RGB", (40, 40), (30 * number, 255 - 20 * number, 90)).save(tmp_path / f"{number}.png")
        samples.append(Sample((tmp_path / f"{number}.png",), (QA("How many?", str(number)),)))
    samples += [Sample((), (QA("Two plus two?", "Four."),))] * 16
    write_jsonl(tmp_path / "train.jsonl", samples)
    return tmp_path


def command(
    folder: Path,
    out: str,
    *,
    launch: tuple[str, ...] = (),
    accumulate: int = 1,
    steps: int = 3,
    save_every: int = 99,
) -> list[str]:
    recipe = folder / f"{out}.yaml"
    recipe.write_text(
        RECIPE.format(folder=folder, out=out, accumulate=accumulate, steps=steps, save_every=save_every)
    )
    return [sys.executable, *launch, "-m", "vision_lm", "train", "instruct", str(recipe)]


def finish(arguments: list[str]) -> str:
    """Run to the end; what was said on the way."""
    done = subprocess.run(arguments, capture_output=True, text=True, env=ENVIRONMENT, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stderr


@pytest.mark.slow
def test_a_killed_run_ends_in_the_weights_of_one_that_was_not(folder: Path) -> None:
    """SIGKILL after the first saved state, --resume: bit for bit the same, and begun where it was left."""
    finish(command(folder, "straight", steps=40, save_every=2))
    start = command(folder, "killed", steps=40, save_every=2)
    state = folder / "killed" / run_state.STATE / run_state.RUN
    with subprocess.Popen(
        start, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=ENVIRONMENT
    ) as run:
        deadline = time.monotonic() + 300
        while not state.exists() and run.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        run.kill()
    assert run.returncode == -signal.SIGKILL
    said = finish([*start, "--resume"])
    first = re.search(r"training: .*? (\d+)/40 ", said)
    assert first and 2 <= int(first[1]) < 40
    straight, killed = (read_checkpoint(folder / out).tensors for out in ("straight", "killed"))
    assert straight.keys() == killed.keys()
    assert not [name for name, tensor in straight.items() if not torch.equal(tensor, killed[name])]


@pytest.mark.slow
def test_two_processes_learn_what_one_does_that_accumulates_two_batches(
    trunk_checkpoint: Checkpoint, folder: Path
) -> None:
    """The batches, some of them all text, are shared out and the gradients averaged, nothing else may differ.
    torchrun is what `accelerate launch` starts where there are GPUs; on processors accelerate itself would need MPI.
    """
    finish(command(folder, "one", accumulate=2, steps=6))
    finish(command(folder, "two", launch=("-m", "torch.distributed.run", "--nproc_per_node", "2"), steps=6))
    one, two = (read_checkpoint(folder / out).tensors for out in ("one", "two"))
    for name, tensor in one.items():
        if tensor.is_floating_point():
            torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=1e-4, msg=name)
    changed = [
        name for name, tensor in two.items() if not torch.equal(tensor, trunk_checkpoint.tensors[name])
    ]
    assert any(name.startswith("phi.") for name in changed)
