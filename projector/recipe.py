"""A training recipe: one small YAML file, every key checked."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from vision_lm.errors import TrainingError
from vision_lm.typed_fields import FieldReader


@dataclass(frozen=True)
class Source:
    """One training file and its share of the samples."""

    path: str
    weight: float = 1.0
    format: Literal["auto", "jsonl", "llava", "coco", "vqav2"] = "auto"
    image_root: str | None = None
    annotations: str | None = None  # VQAv2 keeps the answers in a second file
    # Pictures lend their patches to synthetic class evidence (projector/data/evidence.py).
    evidence: bool = False


@dataclass(frozen=True)
class Recipe:
    """What is trained, on what, and for how long. Stage 1 (align) trains the projector, stage 2 (instruct) the rest."""

    checkpoint: str  # where training starts: a folder made by `vision-lm create` or an earlier stage
    out: str
    sources: tuple[Source, ...]
    language_model: Literal["frozen", "lora", "full"] = "frozen"
    tower: Literal["frozen", "full"] = "frozen"
    projector: Literal["frozen", "full"] = "full"
    steps: int = 1000
    batch_size: int = 32  # samples a process and optimiser step, before accumulation
    accumulate: int = 1
    # Muon is for the matrices of a model that starts from nothing.
    optimizer: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = 1e-3
    tower_learning_rate: float = 1e-5
    warmup: float = 0.03  # share of the steps
    weight_decay: float = 0.0
    clip: float = 1.0
    max_turns: int = 8  # questions about one picture packed behind it
    max_tokens: int = 512  # longer samples are cut at a turn
    lora_rank: int = 16
    precision: Literal["auto", "bf16", "no"] = "auto"  # auto: bf16 where the machine multiplies such numbers
    seed: int = 0
    save_every: int = 500
    log_every: int = 10
    feature_cache: str | None = None  # folder for the frozen tower's features

    def __post_init__(self) -> None:
        if not self.sources:
            raise TrainingError(
                "the recipe names no sources; give at least one training file under 'sources'"
            )
        for names, fits, allowed in _LIMITS:
            for name in names:
                if not fits(getattr(self, name)):
                    raise TrainingError(f"recipe: {name} is {getattr(self, name)}, it must be {allowed}")
        for source in self.sources:
            if not 0 < source.weight < math.inf:
                raise TrainingError(
                    f"recipe: the weight of {source.path} is {source.weight}, it must be above 0; "
                    "leave out a source that is not wanted"
                )
        if self.tower == "full" and self.feature_cache:
            raise TrainingError(
                "recipe: feature_cache keeps a frozen tower's features; leave it out to train the tower"
            )

    @classmethod
    def load(cls, path: Path, overrides: Mapping[str, Any] | None = None) -> Recipe:
        """Read a recipe; an override of None leaves its key to the default. Raises TrainingError.

        Relative paths in a recipe are relative to the working directory.
        """
        try:
            raw = yaml.safe_load(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise TrainingError(f"{path}: cannot be read ({error.strerror}); give a recipe file") from None
        except UnicodeDecodeError:
            raise TrainingError(f"{path}: not UTF-8 text; give a recipe file") from None
        except yaml.YAMLError as error:
            raise TrainingError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from None
        if not isinstance(raw, dict):
            raise TrainingError(f"{path}: a recipe is a mapping of keys to values")
        raw |= overrides or {}
        unset = [key for key, value in (overrides or {}).items() if value is None]
        for field in dataclasses.fields(cls):  # an unknown key stays, to be refused
            if field.name in unset:
                del raw[field.name]
        return FieldReader(TrainingError, yaml=True).read(cls, raw, str(path))


_LIMITS: tuple[tuple[tuple[str, ...], Callable[[Any], bool], str], ...] = (
    (
        (
            "steps",
            "batch_size",
            "accumulate",
            "max_turns",
            "max_tokens",
            "lora_rank",
            "save_every",
            "log_every",
        ),
        lambda value: value >= 1,
        "at least 1",
    ),
    (("learning_rate", "tower_learning_rate", "clip"), lambda value: 0 < value < math.inf, "above 0"),
    (("weight_decay",), lambda value: 0 <= value < math.inf, "0 or more"),
    (("warmup",), lambda value: 0 <= value <= 1, "a share of the steps, from 0 to 1"),
    (("seed",), lambda value: 0 <= value < 2**63, "from 0 to 2**63 - 1"),
)
