"""What is asked about every picture: captions, questions, and templates over a list's columns."""

from __future__ import annotations

import json
import re
import string
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from vision_lm.batch.settings import Settings
from vision_lm.errors import BatchError, RequestError
from vision_lm.prompts import CaptionLength, check_question

JSON_QUESTION = "Describe the image as JSON."
RESERVED = ("image", "content", "duplicate_of", "open_seconds", "answer_seconds", "cause", "error")
# Of the columns beside an answer's.
SUFFIXES = ("confidence", "finish_reason", "question", "unanswerable", "unconfirmed")


@dataclass(frozen=True)
class Question:
    """One thing to answer about each picture; `name` heads its column."""

    name: str
    text: str = ""  # a caption has none: the checkpoint has its own
    fields: tuple[str, ...] = ()  # columns that stand in braces in the text
    length: CaptionLength | None = None  # of a caption
    checked: bool = False  # a caption that is confirmed by a second look

    def filled(self, columns: Mapping[str, str]) -> str:
        """The text with this picture's columns in it."""
        return self.text.format_map(columns) if self.fields else self.text


def read_questions(settings: Settings) -> list[Question]:
    """Every question of the settings, in the order of the columns. Raises BatchError, RequestError."""
    asked = [(f"answer_{n}", text) for n, text in enumerate(settings.ask, start=1)]
    if settings.checked and not settings.caption:
        raise BatchError(
            "--check is about what a caption names, and no caption is asked for; give --caption short|normal|long"
        )
    found = []
    if settings.caption:
        found.append(Question("caption", length=settings.caption, checked=settings.checked))
    found += [Question(name, check_question(text)) for name, text in asked]
    if settings.questions:
        found += _read_file(settings.questions, first=len(found) - bool(settings.caption) + 1)
    if settings.json_schema is not None and not any(one.length is None for one in found):
        found.append(Question("json", JSON_QUESTION))
    if not found:
        raise BatchError(
            "nothing is asked; give --caption short|normal|long, --ask QUESTION, --questions FILE or --json-schema FILE"
        )
    names = [one.name for one in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise BatchError(
            f"{settings.questions}: the name {twice!r} is taken; give each question one of its own"
        )
    return found


def _read_file(path: Path, first: int) -> Iterator[Question]:
    """Templates of a file: a line each of text, named by their number from `first` on, or a JSON object's values."""
    try:
        content = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BatchError(f"{path}: cannot be read ({reason}); give a UTF-8 text or .json file") from error
    if path.suffix.lower() == ".json":
        templates = _named(path, content)
    else:
        lines = [(n, line.strip()) for n, line in enumerate(content.splitlines(), start=1)]
        wanted = [(n, line) for n, line in lines if line and not line.startswith("#")]
        templates = {
            f"answer_{number}": (f"{path} line {n}", line)
            for number, (n, line) in enumerate(wanted, start=first)
        }
    if not templates:
        raise BatchError(f"{path}: no question in it; give a question a line, or a JSON object of them")
    for name, (where, text) in templates.items():
        try:
            yield Question(name, check_question(text), fields_of(text, where))
        except RequestError as error:
            raise BatchError(f"{where}: {error}") from error


def _named(path: Path, content: str) -> dict[str, tuple[str, str]]:
    allowed = '{"name": "question", ...}, a name of letters, digits and _'
    try:
        raw = json.loads(content)
    except ValueError as error:
        raise BatchError(f"{path}: not valid JSON ({error}); give {allowed}") from error
    if not isinstance(raw, dict) or not all(isinstance(text, str) for text in raw.values()):
        raise BatchError(f"{path}: expected {allowed}")
    for name in raw:
        taken = name.lower() in RESERVED or name.lower().endswith(tuple(f"_{suffix}" for suffix in SUFFIXES))
        if not re.fullmatch(r"[A-Za-z_]\w{0,59}", name, re.ASCII) or taken:
            raise BatchError(
                f"{path}: {name[:60]!r} cannot head a column; give {allowed}, none of {', '.join(RESERVED)}"
            )
    return {name: (f"{path} {name}", text) for name, text in raw.items()}


def fields_of(template: str, where: str) -> tuple[str, ...]:
    """The columns that a template names. Only plain names: `{a.b}` or `{a!r}` would look inside Python's objects."""
    try:
        pieces = list(string.Formatter().parse(template))
    except ValueError as error:
        raise BatchError(f"{where}: {error}; write {{column}} for a column, and {{{{ for a brace") from None
    for _, name, spec, conversion in pieces:
        if name is not None and (spec or conversion or not re.fullmatch(r"[^.\[\]{}!:]+", name)):
            raise BatchError(
                f"{where}: {{{name}}} is no plain column; write {{column}}, and {{{{ for a brace"
            )
    return tuple(dict.fromkeys(name for _, name, _, _ in pieces if name is not None))
