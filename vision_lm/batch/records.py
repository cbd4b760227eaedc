"""What a journal keeps of a picture, and how that stands in a row of its table."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vision_lm.batch.sources import Item, Source

# Columns: what is known of a picture from the beginning, and what is found.
PLANNED = "key, position, image, source, relative, asked, problem"
RESULT = (
    "content, pixels, look, more_frames, answers, answered, duplicate_of, cause, error, open_seconds, "
    "answer_seconds, thumbnail"
)


@dataclass(frozen=True)
class Asked:
    """A question as it was put to one picture, and the answer."""

    question: str
    text: str
    confidence: float
    finish_reason: str
    unanswerable: bool = False  # less sure than the checkpoint's threshold; of journals of before: not known
    unconfirmed: tuple[str, ...] = ()  # of a checked caption: what it first named, and does not say any more


@dataclass(frozen=True)
class Planned:
    """A picture of this run."""

    key: bytes
    position: int
    item: Item
    asked: tuple[str, ...]  # the questions, filled in


@dataclass(frozen=True)
class Result:
    """What became of a picture: answers, or an error."""

    content: str | None = None  # hash of its bytes
    pixels: bytes = b""  # digest of what the encoder sees
    look: bytes = b""
    more_frames: bool = False
    answers: tuple[Asked, ...] = ()
    answered: int = 0  # the run that made the answers
    duplicate_of: str | None = None  # the image whose answers these are
    cause: str | None = None
    error: str | None = None
    open_seconds: float = 0.0
    answer_seconds: float = 0.0
    thumbnail: bytes | None = None


@dataclass(frozen=True)
class Done:
    """A picture with its result."""

    planned: Planned
    result: Result
    done: int


def planned_row(item: Item, asked: tuple[str, ...], position: int) -> tuple[Any, ...]:
    source, questions = item.source.to_json(), json.dumps(asked)
    relative = json.dumps(item.relative)  # a path may hold bytes that are no text
    where = json.dumps([item.source.path, item.source.member and item.source.member.name])
    key = hashlib.blake2b(f"{where}\n{questions}".encode(), digest_size=16).digest()
    return key, position, item.image, source, relative, questions, item.problem


def planned(row: Sequence[Any]) -> Planned:
    key, position, image, source, relative, asked, problem = row[:7]
    item = Item(image, Source.from_json(source), json.loads(relative), problem=problem)
    return Planned(key, position, item, tuple(json.loads(asked)))


def result_row(result: Result) -> tuple[Any, ...]:
    answers = [
        [one.question, one.text, one.confidence, one.finish_reason, one.unanswerable, one.unconfirmed]
        for one in result.answers
    ]
    return (
        result.content,
        result.pixels,
        result.look,
        result.more_frames,
        json.dumps(answers) if answers else None,
        result.answered,
        result.duplicate_of,
        result.cause,
        result.error,
        result.open_seconds,
        result.answer_seconds,
        result.thumbnail,
    )


def result(row: Sequence[Any]) -> Result:
    (
        content,
        pixels,
        look,
        frames,
        answers,
        answered,
        duplicate,
        cause,
        error,
        opening,
        answering,
        thumbnail,
    ) = row
    return Result(
        content,
        pixels or b"",
        look or b"",
        bool(frames),
        tuple(Asked(*one[:5], *map(tuple, one[5:])) for one in json.loads(answers or "[]")),
        answered or 0,
        duplicate,
        cause,
        error,
        opening or 0.0,
        answering or 0.0,
        thumbnail,
    )
