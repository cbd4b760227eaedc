"""Answers of a given form: JSON by a schema, text by a regular expression, or one of a few choices.

The grammar library (llguidance) walks the form byte by byte and says which tokens may come next. Here a form is
checked and compiled, and each request gets a matcher of its own.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Literal

import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer, regex_to_lark
from tokenizers import Tokenizer
from torch import Tensor

from vision_lm.errors import RequestError

MAX_SCHEMA_CHARACTERS = 20_000
MAX_REGEX_CHARACTERS = 4_000
MAX_CHOICES = 1_000
MAX_CHOICE_CHARACTERS = 1_000
KEPT_GRAMMARS = 64  # compiled ones, the least recently used is dropped first

# Between JSON's tokens at most one blank: with the library's "any number" a small model may write blanks for ever.
# Set on every schema, so that nothing a request carries changes what is written into something else than JSON.
_JSON_LAYOUT = {"whitespace_flexible": True, "whitespace_pattern": " ", "lenient": False}


@dataclass(frozen=True)
class Constraint:
    """The form that an answer must have."""

    kind: Literal["json_schema", "regex", "choices"]
    value: str | tuple[str, ...]  # a schema's JSON text, the expression, or the choices

    @classmethod
    def of(
        cls,
        json_schema: dict[str, Any] | bool | str | None = None,
        regex: str | None = None,
        choices: Sequence[str] | None = None,
    ) -> Constraint | None:
        """The one form that is given, or None. Raises RequestError for more than one, or for what is none."""
        forms = {"json_schema": json_schema, "regex": regex, "choices": choices}
        given = [name for name, form in forms.items() if form is not None]
        if len(given) > 1:
            raise RequestError(f"{' and '.join(given)} are given together; give one of them")
        if json_schema is not None:
            return cls("json_schema", _schema_text(json_schema))
        if regex is not None:
            if not isinstance(regex, str) or not 1 <= len(regex) <= MAX_REGEX_CHARACTERS:
                raise _wrong(
                    "regex", regex, f"a regular expression of 1 to {MAX_REGEX_CHARACTERS:,} characters"
                )
            if (len(regex) - len(regex.rstrip("\\"))) % 2:  # the library would leave it out without a word
                raise _wrong("regex", regex, "an expression that does not end in a lone backslash")
            return cls("regex", _unicode("regex", regex))
        return None if choices is None else cls("choices", _choices(choices))


class Matcher:
    """Where one request stands in its form."""

    def __init__(self, library: LLMatcher, rows: int, ids: int, stop_ids: list[int]) -> None:
        self._library = library
        self._rows, self._ids, self._stop_ids = rows, ids, stop_ids

    def mask(self) -> Tensor:
        """Which tokens may come next: (V,), bool, on the CPU. Raises RequestError if the form got too complex.

        A stop token may come exactly where the answer is complete. Rows of the embedding that are no token of
        the tokenizer, such as the image placeholder's, never may.
        """
        bias = np.frombuffer(self._library.compute_logit_bias(), dtype=np.uint8)  # (V,): 0 or 200
        if self._library.is_error():
            raise RequestError(f"the answer's form {_reason(self._library)}; simplify it")
        allowed = torch.from_numpy(bias != 0)  # (V,)
        allowed[self._ids :] = False
        allowed[self._stop_ids] = self._library.is_accepting()
        return allowed

    def accept(self, token: int) -> None:
        """Take the chosen token. Raises RequestError if it is not one that `mask` allows."""
        if token in self._stop_ids and self._library.is_accepting():
            return
        if not self._library.consume_token(token):
            raise RequestError(
                f"token {token} does not fit the answer's form; choose one that the mask allows"
            )

    @property
    def done(self) -> bool:
        """True once the answer is complete and nothing can be added: only a stop token could come."""
        return self._library.is_stopped() and not self._library.is_error()


class Grammars:
    """Compiles forms for one checkpoint's tokenizer, each once."""

    def __init__(self, tokenizer: Tokenizer, rows: int, stop_ids: Collection[int], lead: str = "") -> None:
        """`rows`: V, the embedding's rows, at least the tokenizer's ids; `stop_ids`: the tokens that end an answer.

        `lead`: the text with which every answer begins by the prompt's template, such as " " after "Answer:".
        """
        self._tokenizer = tokenizer
        self._rows, self._stop_ids, self._lead = rows, sorted(stop_ids), lead
        self._compiled = lru_cache(KEPT_GRAMMARS)(self._compile)

    def matcher(self, constraint: Constraint) -> Matcher:
        """A matcher at the form's beginning. Raises RequestError for a form that the library cannot follow."""
        ids = self._tokenizer.get_vocab_size(with_added_tokens=True)
        return Matcher(self._compiled(constraint).deep_copy(), self._rows, ids, self._stop_ids)

    @cached_property
    def _library_tokenizer(self) -> LLTokenizer:
        """Built for the first constrained request: it takes a moment, and most requests need none."""
        try:
            return LLTokenizer(self._tokenizer.to_str(), n_vocab=self._rows, eos_token=self._stop_ids)
        except ValueError as error:
            raise RequestError(
                f"json_schema, regex and choices do not work with this checkpoint's tokenizer: {_line(str(error))}"
            ) from None

    def _compile(self, constraint: Constraint) -> LLMatcher:
        library = LLMatcher(self._library_tokenizer, self._grammar(constraint), log_level=0)
        if not library.is_error():
            library.compute_logit_bias()  # a form that no text can have is found out at the first step
        if library.is_error():
            raise _wrong(
                constraint.kind,
                constraint.value,
                f"a form that can be followed: this one {_reason(library)}",
            )
        return library

    def _grammar(self, constraint: Constraint) -> str:
        """The form in the library's own notation, the lead before it."""
        if constraint.kind == "json_schema":
            schema = json.loads(str(constraint.value))
            form = "%json " + json.dumps(schema | {"x-guidance": _JSON_LAYOUT})
        elif constraint.kind == "regex":
            form = f"/{regex_to_lark(str(constraint.value))}/"
        else:
            form = " | ".join(json.dumps(choice) for choice in constraint.value)
        lead = json.dumps(self._lead) if self._lead else ""
        return LLMatcher.grammar_from_lark(f"start: {lead} form\nform: {form}")


def _schema_text(schema: Any) -> str:
    """A JSON schema, given as a dict, as its JSON text, or as True for any object, in one spelling."""
    allowed = f"a JSON schema (a dict or JSON text) of up to {MAX_SCHEMA_CHARACTERS:,} characters, or True for any JSON object"
    try:
        if schema is True:
            schema = {"type": "object"}
        elif isinstance(schema, str) and len(schema) <= MAX_SCHEMA_CHARACTERS:
            schema = json.loads(schema)
        text = json.dumps(schema, allow_nan=False)
    except (ValueError, TypeError, RecursionError):  # no JSON, endless, or nested too deeply
        raise _wrong("json_schema", schema, allowed) from None
    if not isinstance(schema, dict) or len(text) > MAX_SCHEMA_CHARACTERS:
        raise _wrong("json_schema", schema, allowed)
    return text


def _choices(choices: Any) -> tuple[str, ...]:
    fine = (
        isinstance(choices, (list, tuple))
        and 1 <= len(choices) <= MAX_CHOICES
        and all(isinstance(one, str) and 1 <= len(one) <= MAX_CHOICE_CHARACTERS for one in choices)
    )
    if not fine:
        raise _wrong(
            "choices",
            choices,
            f"a list of 1 to {MAX_CHOICES:,} texts, each of 1 to {MAX_CHOICE_CHARACTERS:,} characters",
        )
    return tuple(_unicode("choices", one) for one in choices)


def _unicode(name: str, text: str) -> str:
    """The text, if it has bytes: half of a surrogate pair has none."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _wrong(name, text, "valid Unicode text") from None
    return text


def _wrong(name: str, given: Any, allowed: str) -> RequestError:
    """`reprlib` shows the beginning of what may be long, deep or endless."""
    return RequestError(f"{name} is {reprlib.repr(given)}; give {allowed}")


def _reason(library: LLMatcher) -> str:
    """Why the library gave up, in one line."""
    lines = library.get_error().splitlines()
    if lines and lines[0].startswith("NoExtension"):
        return "fits no text at all"
    causes = [line for line in lines if line.startswith("error: ")]
    return "is refused (" + _line((causes or lines or ["unknown"])[0].removeprefix("error: ")) + ")"


def _line(text: str, most: int = 120) -> str:
    """On one line and short, as an error message shows it."""
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 3] + "..."
