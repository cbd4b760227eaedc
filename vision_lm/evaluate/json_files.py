"""JSON files and their fields, with messages that name the file and the record."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vision_lm.errors import EvaluationError

_KINDS = {str: "text", int: "a number", float: "a number", list: "a list", dict: "an object"}
NAMED = 3  # ids that a message names


def require(path: Path | None, option: str, published: str) -> Path:
    """The file that an option gives. Raises EvaluationError that says how its publisher calls it."""
    if path is None:
        raise EvaluationError(f"{option} is missing; give it {published}")
    if not path.exists():
        raise EvaluationError(
            f"{option} {path}: no such file; fetch {published} first (nothing is downloaded), see docs/evaluation.md"
        )
    return path


def read_json(path: Path) -> Any:
    """What a JSON file holds. Raises EvaluationError."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise EvaluationError(
            f"{path}: cannot be read ({error.strerror}); give a readable JSON file"
        ) from error
    except (ValueError, RecursionError) as error:
        raise EvaluationError(f"{path}: not whole JSON ({error}); fetch or write it again") from error


def records(path: Path, value: Any, key: str | None = None) -> list[Any]:
    """The list that a file is, or has under `key`. Raises EvaluationError."""
    found = value.get(key) if key is not None and isinstance(value, dict) else value if key is None else None
    if not isinstance(found, list) or not found:
        what = f"a list under {key!r}" if key else "a list"
        raise EvaluationError(f"{path}: needs {what} of at least one record; is it the file of another task?")
    return found


def field(record: Any, name: str, where: str, kind: type | tuple[type, ...] = (str, int, float)) -> Any:
    """Raises EvaluationError where a record has no such field, or one of another kind: text or a number unless said."""
    if not isinstance(record, dict) or name not in record:
        raise EvaluationError(f"{where}: {name!r} is missing; is it the file of another task or split?")
    value = record[name]
    if not isinstance(value, kind) or isinstance(value, bool):
        kinds = " or ".join(_KINDS[one] for one in (kind if isinstance(kind, tuple) else (kind,)))
        raise EvaluationError(
            f"{where}: {name} is {json.dumps(value)[:60]}; it must be {kinds}; is it the file of another task?"
        )
    return value


def some(ids: Sequence[str]) -> str:
    """A few of the ids, and how many there are."""
    named = ", ".join(one if one.isprintable() else repr(one) for one in ids[:NAMED])
    return f"{len(ids):,}: {named}{' ...' if len(ids) > NAMED else ''}"


def by_id(path: Path, found: Sequence[Any], name: str) -> dict[str, Any]:
    """Records by their id as text. Raises EvaluationError for ids that two have."""
    table: dict[str, Any] = {}
    twice: list[str] = []
    for number, record in enumerate(found, start=1):
        key = str(field(record, name, f"{path}: record {number}"))
        if key in table:
            twice.append(key)
        table[key] = record
    if twice:
        raise EvaluationError(
            f"{path}: {name} given more than once ({some(twice)}); give each record its own"
        )
    return table
