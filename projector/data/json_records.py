"""A JSON file read one record at a time: a million conversations need no more memory than the longest."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from vision_lm.errors import DataError

CHUNK = 1 << 20  # characters read at a time; a record may be longer


def iter_records(path: Path) -> Iterator[tuple[str | None, int, Any]]:
    """The records of a JSON file as (key, number from 1, value): every element of the outermost array (key
    None), or of each array in the outermost object; any other value in that object comes whole, as number 1.

    Raises DataError with line and column where the JSON is wrong or cut short.
    """
    with path.open(encoding="utf-8-sig") as file:
        text = JsonText(path, file)
        if text.take("[{") == "[":
            for number, value in enumerate(text.elements(), start=1):
                yield None, number, value
        else:
            for key in text.members():
                if text.peek() == "[":
                    text.take("[")
                    for number, value in enumerate(text.elements(), start=1):
                        yield key, number, value
                else:
                    yield key, 1, text.value()
        if text.peek():
            raise text.error("text after the end of the JSON (a file with one object a line is format jsonl)")


class JsonText:
    """A window that moves over a JSON file, as long as one chunk or one record, whichever is longer."""

    def __init__(self, path: Path, file: TextIO) -> None:
        self.path = path
        self.file = file
        self.window = ""
        self.at = 0  # the next character, in the window
        self.line, self.column = 1, 1  # of the window's first character
        self.ended = False
        self.decoder = json.JSONDecoder()

    def elements(self) -> Iterator[Any]:
        """The values of an array whose bracket has been taken, and its closing bracket."""
        if self.peek() == "]":
            self.take("]")
            return
        while True:
            yield self.value()
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
        self.line, self.column = self.position(self.at)
        rest = self.window[self.at :]
        try:
            more = self.file.read(max(CHUNK, len(rest)))
        except UnicodeDecodeError as error:
            raise DataError(f"{self.path}: not UTF-8 text, after line {self.line}: {error.reason}") from None
        self.window, self.at, self.ended = rest + more, 0, not more

    def position(self, index: int) -> tuple[int, int]:
        """Line and column in the file, both from 1, of a character in the window."""
        newlines = self.window.count("\n", 0, index)
        if not newlines:
            return self.line, self.column + index
        return self.line + newlines, index - self.window.rfind("\n", 0, index)

    def error(self, problem: str, index: int | None = None) -> DataError:
        line, column = self.position(self.at if index is None else index)
        return DataError(f"{self.path}:{line}: not JSON: {problem} at column {column}")
