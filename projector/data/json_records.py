"""A JSON file read one record at a time: a million conversations need no more memory than the longest."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from vision_lm.errors import DataError

CHUNK = 1 << 20  # characters read at a time; a record may be longer


@dataclass(frozen=True, slots=True)
class Record:
    """One record of a JSON file, and where it stands."""

    key: str | None  # of the outermost object's array or value that it is from; None in an outermost array
    number: int  # in that array, from 1
    line: int  # where it begins, from 1
    value: Any


def iter_records(path: Path) -> Iterator[Record]:
    """The records of a JSON file: every element of the outermost array, or of each array in the outermost object;
    any other value in that object comes whole, as number 1.

    Raises DataError with line and column where the JSON is wrong or cut short.
    """
    with path.open(encoding="utf-8-sig") as file:
        text = JsonText(path, file)
        if text.take("[{") == "[":
            yield from text.elements(None)
        else:
            for key in text.members():
                if text.peek() == "[":
                    text.take("[")
                    yield from text.elements(key)
                else:
                    yield Record(key, 1, text.here(), text.value())
        if text.peek():
            raise text.error("text after the end of the JSON (a file with one object a line is format jsonl)")


class JsonText:
    """A window that moves over a JSON file, as long as one chunk or one record, whichever is longer."""

    def __init__(self, path: Path, file: TextIO) -> None:
        self.path = path
        self.file = file
        self.window = ""
        self.at = 0  # the next character, in the window
        self.known, self.line, self.column = 0, 1, 1  # a character in the window, and where it is in the file
        self.ended = False
        self.decoder = json.JSONDecoder()

    def elements(self, key: str | None) -> Iterator[Record]:
        """The values of an array whose bracket has been taken, and its closing bracket."""
        if self.peek() == "]":
            self.take("]")
            return
        for number in itertools.count(1):
            yield Record(key, number, self.here(), self.value())
            if self.take(",]") == "]":
                return

    def members(self) -> Iterator[str]:
        """The keys of an object whose brace has been taken; the caller reads each key's value."""
        if self.peek() == "}":
            self.take("}")
            return
        while True:
            if self.peek() != '"':
                raise self.error("expecting a key in double quotes")
            key = self.value()
            self.take(":")
            yield key
            if self.take(",}") == "}":
                return

    def value(self) -> Any:
        self.peek()
        while True:
            try:
                value, end = self.decoder.raw_decode(self.window, self.at)
            except json.JSONDecodeError as error:
                # A value cut off by the window's end fails there, or at the start of its last string.
                cut_off = error.msg.startswith("Unterminated string") or error.pos > len(self.window) - 16
                if self.ended or not cut_off:
                    raise self.error(error.msg, error.pos) from None
            except (ValueError, RecursionError) as error:
                # A number of thousands of digits, or brackets without end.
                raise self.error(str(error)) from None
            else:
                # Near the window's end a number may go on: "1" is all that "1e-" gives of "1e-7".
                if end + 2 < len(self.window) or self.ended:
                    self.at = end
                    return value
            self.move()

    def peek(self) -> str:
        """The next character that is not white space, or "" at the end of the file."""
        while True:
            while self.at < len(self.window):
                if self.window[self.at] not in " \t\r\n":
                    return self.window[self.at]
                self.at += 1
            if self.ended:
                return ""
            self.move()

    def take(self, allowed: str) -> str:
        if not self.peek() or self.window[self.at] not in allowed:
            raise self.error("expecting " + " or ".join(allowed))
        self.at += 1
        return self.window[self.at - 1]

    def move(self) -> None:
        """Drops what has been read and reads on, twice as far each time a record does not fit."""
        self._note()
        rest = self.window[self.at :]
        try:
            more = self.file.read(max(CHUNK, len(rest)))
        except UnicodeDecodeError as error:
            raise DataError(f"{self.path}: not UTF-8 text, after line {self.line}: {error.reason}") from None
        self.window, self.at, self.known, self.ended = rest + more, 0, 0, not more

    def here(self) -> int:
        """The line of the next character that is not white space."""
        self.peek()
        self._note()
        return self.line

    def position(self, index: int) -> tuple[int, int]:
        """Line and column in the file, both from 1, of a character in the window that is still to be read."""
        newlines = self.window.count("\n", self.known, index)
        if not newlines:
            return self.line, self.column + index - self.known
        return self.line + newlines, index - self.window.rfind("\n", self.known, index)

    def _note(self) -> None:
        """Counts the lines up to the next character, once: the file may be one long line or millions."""
        self.line, self.column = self.position(self.at)
        self.known = self.at

    def error(self, problem: str, index: int | None = None) -> DataError:
        line, column = self.position(self.at if index is None else index)
        return DataError(f"{self.path}:{line}: not JSON: {problem} at column {column}")
