"""A run so small that tests train it: four plain pictures, each asked its colour in two ways."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from accelerate import Accelerator
from PIL import Image

from projector.data.samples import QA, Sample, write_jsonl
from projector.recipe import Recipe, Source
from projector.train import Run
from vision_lm.checkpoint import Checkpoint, write_checkpoint

COLOURS = {"red": (220, 30, 30), "green": (30, 180, 40), "blue": (40, 60, 220), "white": (250, 250, 250)}


def write_data(folder: Path) -> Path:
    """A picture of each colour, and the file of what is asked about it."""
    samples = []
    for name, rgb in COLOURS.items():
        Image.new("RGB", (40, 40), rgb).save(folder / f"{name}.png")
        turns = (QA("What colour is it?", name), QA("Is it red?", "yes" if name == "red" else "no"))
        samples.append(Sample((folder / f"{name}.png",), turns))
    write_jsonl(folder / "train.jsonl", samples)
    return folder / "train.jsonl"


def write_start(folder: Path, checkpoint: Checkpoint) -> Path:
    """A checkpoint folder to train from."""
    write_checkpoint(folder / "start", checkpoint.config, checkpoint.tensors, checkpoint.tokenizer)
    return folder / "start"


def recipe(start: Path, data: Path, **changes: Any) -> Recipe:
    settings: dict[str, Any] = {
        "checkpoint": str(start),
        "out": str(data.parent / "out"),
        "sources": (Source(str(data)),),
        "language_model": "full",
        "steps": 6,
        "batch_size": 3,
        "learning_rate": 3e-3,
        "precision": "no",
        "save_every": 100,
    }
    return Recipe(**(settings | changes))


def recipe_file(start: Path, data: Path, **changes: Any) -> Path:
    """The same as a file."""
    settings: dict[str, Any] = {
        "checkpoint": str(start),
        "out": str(data.parent / "out"),
        "sources": [{"path": str(data)}],
        "language_model": "full",
        "steps": 4,
        "batch_size": 4,
        "learning_rate": 3e-3,
        "precision": "no",
    }
    path = data.parent / "recipe.yaml"
    path.write_text(yaml.safe_dump(settings | changes))
    return path


def run(recipe: Recipe) -> Run:
    return Run(recipe, Accelerator(cpu=True, mixed_precision="no"))
