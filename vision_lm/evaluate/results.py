"""Scores of a set of predictions, as `scores.json` holds them."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

import vision_lm
from vision_lm.evaluate.bootstrap import Score, scores
from vision_lm.evaluate.predictions import Prediction
from vision_lm.evaluate.selective import selective_scores
from vision_lm.evaluate.tasks import Item, Task

LISTED = 20  # ids of missing items in scores.json
ANSWERING = (
    "llguidance",
    "open_clip_torch",
    "pillow",
    "timm",
    "tokenizers",
    "torch",
)  # packages with a part in answers
SCORING = ("numpy", "pycocoevalcap", "transformers")  # and in scores alone


@dataclass(frozen=True)
class Scored:
    """One set of predictions about items, in the items' order, with everything that was measured of it."""

    items: tuple[Item, ...]
    predictions: tuple[Prediction, ...]
    right: np.ndarray  # (items,), nan where the task has no such thing
    overall: dict[str, Score]
    by_kind: dict[str, Score]  # of the scorer's headline
    confidence: dict[str, Score]  # what the confidence is worth; empty where it, or being right, is not known
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Result:
    """An evaluation. `partial`: not every item of the task was scored."""

    task: str
    seeing: Scored
    blind: Scored | None
    total: int  # items of the task
    missing: dict[str, str]  # id -> why, of those that were to be answered
    record: dict[str, Any]  # command, model, files, seed

    @property
    def partial(self) -> bool:
        blind = 0 if self.blind is None else len(self.seeing.items) - len(self.blind.items)
        return len(self.seeing.items) < self.total or blind != 0

    def to_json(self) -> dict[str, Any]:
        """What `scores.json` holds. The same predictions give the same numbers, bit by bit."""
        found: dict[str, Any] = {
            "task": self.task,
            "partial": self.partial,
            "items": self.total,
            "scored": len(self.seeing.items),
            "missing": {"count": len(self.missing), "first": dict(list(self.missing.items())[:LISTED])},
            "scores": _table(self.seeing.overall),
        }
        if self.seeing.by_kind:
            found["by kind"] = _table(self.seeing.by_kind)
        if self.seeing.confidence:
            found["confidence"] = _table(self.seeing.confidence)
        if self.blind is not None:
            found["blind"] = _table(self.blind.overall) | {"scored": len(self.blind.items)}
            found["blind by kind"] = _table(self.blind.by_kind)
        return found | {"notes": list(self.seeing.notes), **self.record, "versions": versions()}

    def __str__(self) -> str:
        lines = [
            f"{self.task}: {len(self.seeing.items):,} of {self.total:,} items" + (", PARTIAL" * self.partial)
        ]
        for name, one in self.seeing.overall.items():
            blind = "" if self.blind is None else f"   blind {self.blind.overall[name].value:.4f}"
            lines.append(f"  {name:<20}{one.value:.4f}   {one.low:.4f} to {one.high:.4f}{blind}")
        for name, one in self.seeing.confidence.items():
            lines.append(f"  {name:<28}{one.value:.4f}   {one.low:.4f} to {one.high:.4f}")
        lines += [f"  {note}" for note in self.seeing.notes]
        return "\n".join(lines)


def score(
    task: Task, items: Sequence[Item], predictions: Mapping[str, Prediction], seed: int, resamples: int
) -> Scored:
    """Judge the items that have a prediction. The order of the predictions has no part in it."""
    known = tuple(item for item in items if item.id in predictions)
    said = tuple(predictions[item.id] for item in known)
    pictures = [str(item.image) for item in known]
    measured = task.scorer.measure(known, [one.prediction for one in said])
    overall = scores(task.scorer, measured, pictures, seed, resamples)
    by_kind: dict[str, Score] = {}
    kinds = sorted({item.kind for item in known if item.kind})
    if headline := task.scorer.headline:
        for kind in kinds:
            own = [place for place, item in enumerate(known) if item.kind == kind]
            part = type(measured)(measured.counts[own], measured.right[own])
            by_kind[kind] = scores(task.scorer, part, [pictures[one] for one in own], seed, resamples)[
                headline
            ]
    worth = _confidence(said, measured.right, pictures, seed, resamples)
    return Scored(known, said, measured.right, overall, by_kind, worth, measured.notes)


def _confidence(
    said: Sequence[Prediction], right: np.ndarray, pictures: Sequence[str], seed: int, resamples: int
) -> dict[str, Score]:
    sure = [one.confidence for one in said]
    if not said or None in sure or np.isnan(right).any():
        return {}
    held = [one.unanswerable for one in said]
    known = None if None in held else np.array(held)
    return selective_scores(np.array(sure, dtype=float), right, known, pictures, seed, resamples)


def versions(packages: Sequence[str] = ANSWERING + SCORING) -> dict[str, str]:
    """Of ours, of Python, and of those of these packages that are installed."""
    found = {"vision-lm": vision_lm.__version__, "python": platform.python_version()}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def write_whole(path: Path, text: str) -> None:
    """Under its name only when it is whole."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def write_scores(path: Path, result: Result) -> None:
    write_whole(path, json.dumps(result.to_json(), indent=1) + "\n")


def _table(found: Mapping[str, Score]) -> dict[str, Any]:
    return {name: asdict(one) for name, one in found.items()}
