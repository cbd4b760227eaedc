"""A training recipe: one small YAML file, every key checked."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from vision_lm.errors import TrainingError


@dataclass(frozen=True)
class Source:
    """One training file and its share of the samples."""

    path: str
    weight: float = 1.0
    format: Literal["auto", "jsonl", "llava", "coco", "vqav2"] = "auto"
    image_root: str | None = None
    annotations: str | None = None  # VQAv2 keeps the answers in a second file
    evidence: bool = (
        False  # pictures lend their patches to synthetic class evidence (projector/data/evidence.py)
    )


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
    optimizer: Literal["adamw", "muon"] = (
        "adamw"  # muon: for the matrices of a model that starts from nothing
    )
    learning_rate: float = 1e-3
    tower_learning_rate: float = 1e-5
    warmup: float = 0.03  # share of the steps
    weight_decay: float = 0.0
    clip: float = 1.0
    max_turns: int = 8  # questions about one picture packed behind it
    max_tokens: int = 512  # longer samples are cut at a turn
    lora_rank: int = 16
    precision: Literal["bf16", "no"] = "bf16"
    seed: int = 0
    save_every: int = 500
    log_every: int = 10
    feature_cache: str | None = None  # folder for the frozen tower's features

    def __post_init__(self) -> None:
        if not self.sources:
            raise TrainingError(
                "the recipe names no sources; give at least one training file under 'sources'"
            )
        for name in ("steps", "batch_size", "accumulate", "max_turns", "save_every", "log_every"):
            if getattr(self, name) < 1:
                raise TrainingError(f"recipe: {name} is {getattr(self, name)}, it must be at least 1")
        if self.tower == "full" and self.feature_cache:
            raise TrainingError(
                "recipe: feature_cache keeps a frozen tower's features; leave it out to train the tower"
            )

    @classmethod
    def load(cls, path: Path, **overrides: Any) -> Recipe:
        """Read a recipe. Relative paths in it are relative to the working directory. Raises TrainingError."""
        try:
            raw = yaml.safe_load(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise TrainingError(f"{path}: cannot be read ({error.strerror}); give a recipe file") from None
        except yaml.YAMLError as error:
            raise TrainingError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from None
        if not isinstance(raw, dict):
            raise TrainingError(f"{path}: a recipe is a mapping of keys to values")
        raw |= {key: value for key, value in overrides.items() if value is not None}
        sources = tuple(_fill(Source, entry, f"{path}: sources") for entry in raw.pop("sources", ()))
        return _fill(cls, raw | {"sources": sources}, str(path))


def _fill(kind: Any, raw: dict[str, Any], where: str) -> Any:
    allowed = {f.name: f for f in dataclasses.fields(kind)}
    for key in raw:
        if key not in allowed:
            raise TrainingError(f"{where}: unknown key {key!r}; allowed: {', '.join(allowed)}")
    missing = [
        name
        for name, f in allowed.items()
        if name not in raw and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise TrainingError(f"{where}: key {missing[0]!r} is missing")
    return kind(**raw)
