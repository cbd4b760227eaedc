"""Rows to files. A file is written beside its place, as NAME.partial, and put there when it is complete.

So whoever reads the output sees the whole or what was there before, and may watch NAME.partial grow.
"""

from __future__ import annotations

import csv
import os
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from vision_lm.batch.records import Done
from vision_lm.batch.rows import Row, Table
from vision_lm.errors import BatchError


class Writer(ABC):
    """One output. Begin, write any number of times, finish."""

    def __init__(self, out: Path, table: Table) -> None:
        self.out, self.table = out.absolute(), table  # the folder "." has no name to add to
        self.partial = self.out.with_name(self.out.name + ".partial") if self.out.name else self.out

    @property
    def journal(self) -> Path:
        return self.out.with_name(self.out.name + ".journal")

    @abstractmethod
    def begin(self) -> None:
        """Start from nothing."""

    @abstractmethod
    def write(self, done: Iterable[Done]) -> None: ...

    @abstractmethod
    def close(self) -> None:
        """Everything on the disk."""

    def finish(self) -> None:
        """The output is whole: put it in its place."""
        self.close()
        with self.partial.open("rb") as file:
            os.fsync(file.fileno())
        self.partial.replace(self.out)

    def begun(self) -> bool:
        """Whether there is something at the output's place."""
        return self.out.exists()

    def rows(self, done: Iterable[Done]) -> Iterator[Row]:
        return map(self.table.row, done)


class LinesWriter(Writer):
    """JSON Lines."""

    _file: IO[str] | None = None

    def begin(self) -> None:
        self.close()
        self._file = self.partial.open("w", encoding="utf-8", newline="\n")

    def write(self, done: Iterable[Done]) -> None:
        assert self._file is not None
        self._file.writelines(self.table.json_line(row) for row in self.rows(done))
        self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            file.close()


class CsvWriter(LinesWriter):
    """CSV as RFC 4180 has it, but for its line ends."""

    def begin(self) -> None:
        super().begin()
        self._writer().writeheader()

    def write(self, done: Iterable[Done]) -> None:
        self._writer().writerows(self.rows(done))
        assert self._file is not None
        self._file.flush()

    def _writer(self) -> csv.DictWriter[str]:
        assert self._file is not None
        names = [column.name for column in self.table.columns]
        return csv.DictWriter(self._file, names, lineterminator="\n")


class ParquetWriter(Writer):
    """Parquet, a row group for at most GROUP rows."""

    GROUP = 4096
    _writer: Any = None

    def begin(self) -> None:
        import pyarrow
        import pyarrow.parquet

        self.close()
        kinds = {str: pyarrow.string(), float: pyarrow.float64(), bool: pyarrow.bool_()}
        schema = pyarrow.schema([(column.name, kinds[column.kind]) for column in self.table.columns])
        self._rows: list[Row] = []
        self._writer = pyarrow.parquet.ParquetWriter(self.partial, schema)

    def write(self, done: Iterable[Done]) -> None:
        for row in self.rows(done):
            self._rows.append(row)
            if len(self._rows) >= self.GROUP:
                self._group()

    def close(self) -> None:
        if self._writer is not None:
            writer = self._writer
            try:
                self._group()
            finally:
                self._writer = None
                writer.close()

    def _group(self) -> None:
        import pyarrow

        if self._rows:
            rows, self._rows = self._rows, []
            self._writer.write_table(pyarrow.Table.from_pylist(rows, schema=self._writer.schema))


class SqliteWriter(Writer):
    """A table `answers` in an SQLite file."""

    _db: sqlite3.Connection | None = None

    def begin(self) -> None:
        self.close()
        self.partial.unlink(missing_ok=True)
        self._db = sqlite3.connect(self.partial, isolation_level=None)
        self._db.execute("PRAGMA journal_mode = OFF")  # a partial file is never gone on with
        self._db.execute("PRAGMA synchronous = OFF")
        kinds = {str: "TEXT", float: "REAL", bool: "INTEGER"}
        columns = ", ".join(f'"{column.name}" {kinds[column.kind]}' for column in self.table.columns)
        self._db.execute(f"CREATE TABLE answers ({columns})")

    def write(self, done: Iterable[Done]) -> None:
        assert self._db is not None
        places = ", ".join("?" * len(self.table.columns))
        self._db.execute("BEGIN")
        self._db.executemany(
            f"INSERT INTO answers VALUES ({places})", (tuple(row.values()) for row in self.rows(done))
        )
        self._db.execute("COMMIT")

    def close(self) -> None:
        if self._db is not None:
            db, self._db = self._db, None
            db.close()


class SidecarWriter(Writer):
    """A .txt for each picture, below a folder as the picture is below its own. A failure has none."""

    @property
    def journal(self) -> Path:
        return self.out / "answers.journal"

    def begin(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)

    def write(self, done: Iterable[Done]) -> None:
        for one in done:
            text = self.table.text(one)
            if one.planned.item.problem:  # it has no place of its own
                continue
            path = self.path(one.planned.item.relative)
            if text is None:
                path.unlink(missing_ok=True)  # of an earlier run, when the picture could be read
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(path.name + ".partial")
            partial.write_text(text, encoding="utf-8", newline="\n")
            partial.replace(path)

    def path(self, relative: str) -> Path:
        """Where a picture's text goes."""
        return (self.out / relative).with_suffix(".txt")

    def close(self) -> None:
        pass

    def finish(self) -> None:
        pass

    def begun(self) -> bool:
        return False  # each text is looked for by itself


FORMATS: dict[str, Callable[[Path, Table], Writer]] = {
    ".jsonl": LinesWriter,
    ".csv": CsvWriter,
    ".parquet": ParquetWriter,
    ".sqlite": SqliteWriter,
    ".db": SqliteWriter,
}


def writer_for(out: Path, table: Table) -> Writer:
    """By the suffix. Raises BatchError for one that is not known."""
    suffix = out.suffix.lower()
    if suffix in FORMATS and not out.is_dir():
        return FORMATS[suffix](out, table)
    if out.is_dir() or (not suffix and not out.exists()):
        return SidecarWriter(out, table)
    raise BatchError(
        f"{out}: what should be written there is not clear; give a file that ends in {', '.join(FORMATS)}, "
        "or a folder for a .txt of each picture"
    )


@contextmanager
def faults(out: Path, journal: Path) -> Iterator[None]:
    """What cannot be written, in one line that says where the answers are."""
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        where = getattr(error, "filename", None) or out
        raise BatchError(
            f"{where}: cannot be written ({reason}); the answers so far are safe in {journal}: make room, or put "
            "that right, and run again"
        ) from error
