"""Predictions: the file that a run appends to, and files that others wrote."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vision_lm.errors import EvaluationError
from vision_lm.evaluate.json_files import read_json, some

# How results files of the tasks name the item and what was said of it.
ID_NAMES = ("id", "question_id", "questionId", "image_id")
TEXT_NAMES = ("prediction", "answer", "caption", "text")


@dataclass(frozen=True)
class Prediction:
    """What was said of one item."""

    id: str
    prediction: str
    confidence: float | None = None  # 0 to 1
    finish_reason: str | None = None
    unanswerable: bool | None = None  # whether the model itself holds the answer back


@dataclass(frozen=True)
class Failure:
    """An item that could not be answered."""

    id: str
    error: str


def read_predictions(path: Path, known: Collection[str]) -> dict[str, Prediction]:
    """By id. JSON Lines or a JSON list, such as VQAv2's [{"question_id", "answer"}] or COCO's [{"image_id", "caption"}].

    Raises EvaluationError that names the ids given twice and those that are not among the `known`.
    """
    found: dict[str, Prediction] = {}
    twice, strange = [], []
    for where, record in _records(path):
        one = _prediction(record, where)
        if one.id in found:
            twice.append(one.id)
        elif one.id not in known:
            strange.append(one.id)
        found[one.id] = one
    if twice:
        raise EvaluationError(
            f"{path}: ids given more than once ({some(twice)}); leave one prediction for each"
        )
    if strange:
        raise EvaluationError(
            f"{path}: ids that the task does not have ({some(strange)}); give the predictions of this task and split"
        )
    return found


def _records(path: Path) -> list[tuple[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise EvaluationError(f"{path}: cannot be read ({reason}); give a file of predictions") from error
    if text.lstrip().startswith("["):
        return [(f"{path}: record {number}", one) for number, one in enumerate(read_json(path), start=1)]
    found = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                found.append((f"{path} line {number}", json.loads(line)))
            except (ValueError, RecursionError) as error:
                raise EvaluationError(
                    f"{path} line {number}: not JSON ({error}); give an object a line, or one JSON list"
                ) from error
    return found


def _prediction(record: Any, where: str) -> Prediction:
    names = record if isinstance(record, dict) else {}
    identity = next((names[one] for one in ID_NAMES if one in names), None)
    text = next((names[one] for one in TEXT_NAMES if one in names), None)
    if not isinstance(identity, str | int) or not isinstance(text, str):
        raise EvaluationError(
            f"{where}: needs an id ({', '.join(ID_NAMES)}) and a text ({', '.join(TEXT_NAMES)}) in quotes"
        )
    sure = names.get("confidence")
    if sure is not None and (not isinstance(sure, int | float) or not 0 <= sure <= 1):
        raise EvaluationError(f"{where}: confidence is {sure!r}; it must be a number from 0 to 1")
    held = names.get("unanswerable")
    if not isinstance(held, bool | None):
        raise EvaluationError(f"{where}: unanswerable is {held!r}; it must be true or false")
    return Prediction(str(identity), text, sure, names.get("finish_reason"), held)


class PredictionFile:
    """The file of a run. A line is written as soon as its answer is there, so a kill loses no other."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self, known: Collection[str]) -> dict[str, Prediction]:
        """What earlier runs wrote. Half a line, which a kill left, is taken away."""
        if not self.path.exists():
            return {}
        data = self.path.read_bytes()
        if not data.endswith(b"\n"):
            os.truncate(self.path, data.rfind(b"\n") + 1)
        return read_predictions(self.path, known)

    def append(self, predictions: Iterable[Prediction]) -> None:
        """Write each as it comes."""
        with self.path.open("a", encoding="utf-8", newline="\n") as file:
            for one in predictions:
                file.write(json.dumps(asdict(one), ensure_ascii=True) + "\n")
                file.flush()
