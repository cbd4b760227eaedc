"""Dataclasses filled from JSON or YAML: every key known, none missing, every value of its field's type."""

from __future__ import annotations

import contextlib
import dataclasses
import types
import typing
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from vision_lm.errors import VisionLMError

T = TypeVar("T")
_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false", dict: "an object"}


@dataclass(frozen=True)
class FieldReader:
    """Reads what people write into typed dataclasses, and says in one line which key is wrong and what it may be."""

    error: type[VisionLMError]  # what is raised
    yaml: bool = False  # written in YAML 1.1, to which 1e-3 is text and a plain `no` is false

    def read(self, kind: type[T], raw: Any, where: str) -> T:
        """A dataclass `kind` out of the mapping `raw`; messages begin with `where`."""
        if not isinstance(raw, dict):
            raise self.error(f"{where}: expected an object, found {_shown(raw)}")
        fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
        hints = typing.get_type_hints(kind)
        for key in raw:
            if key not in fields:
                raise self.error(f"{where}: unknown key {key!r}; allowed: {', '.join(fields)}")
        for key, f in fields.items():
            required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
            if required and key not in raw:
                raise self.error(f"{where}: key {key!r} is missing")
        return kind(**{key: self._value(hints[key], value, f"{where}: {key}") for key, value in raw.items()})

    def _value(self, kind: Any, raw: Any, where: str) -> Any:
        if dataclasses.is_dataclass(kind):
            return self.read(typing.cast(type, kind), raw, where)
        origin, args = typing.get_origin(kind), typing.get_args(kind)
        if origin is Literal:
            if self.yaml and raw is False and "no" in args:
                return "no"
            if raw not in args:
                raise self.error(f"{where}: {_shown(raw)} is not one of {', '.join(map(repr, args))}")
            return raw
        if origin is tuple:
            length = None if args[-1] is Ellipsis else len(args)
            if not isinstance(raw, list) or len(raw) != (length or len(raw)):
                raise self.error(f"{where}: expected a list of {length or 'values'}, found {_shown(raw)}")
            return tuple(self._value(args[0], value, f"{where} {n}") for n, value in enumerate(raw, start=1))
        if origin in (typing.Union, types.UnionType):
            return None if raw is None else self._value(args[0], raw, where)
        return self._plain(dict if origin is dict else kind, raw, where)

    def _plain(self, wanted: type, raw: Any, where: str) -> Any:
        if isinstance(raw, wanted) and (wanted is bool or not isinstance(raw, bool)):
            return raw
        if (
            wanted is float
            and isinstance(raw, (int, str) if self.yaml else int)
            and not isinstance(raw, bool)
        ):
            with contextlib.suppress(ValueError, OverflowError):
                return float(raw)
        raise self.error(f"{where}: expected {_NAMES[wanted]}, found {_shown(raw)}")


def _shown(raw: Any) -> str:
    """A value as an error message shows it: on one line and short."""
    text = repr(raw)
    return text if len(text) <= 60 else text[:57] + "..."
