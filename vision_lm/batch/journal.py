"""The journal: every picture of a run and what became of it, in one SQLite file beside the output.

It is the truth, and the output is written from it. What has been committed outlives a kill at any moment. A later
run with the same settings goes on with it: a picture whose bytes are still the same keeps its answers.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from vision_lm.batch import records
from vision_lm.batch.records import PLANNED, RESULT, Done, Planned, Result
from vision_lm.batch.settings import Order
from vision_lm.batch.sources import Item, Source
from vision_lm.errors import BatchError

FORMAT = 1
PAGE = 256  # pictures read at once
SCHEMA = """
CREATE TABLE about (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE pictures (
    key BLOB PRIMARY KEY,      -- of its source and its questions
    run INTEGER NOT NULL,      -- the last run that was given it
    position INTEGER NOT NULL, -- among that run's inputs
    image TEXT NOT NULL, source TEXT NOT NULL, relative TEXT NOT NULL, asked TEXT NOT NULL, problem TEXT,
    done INTEGER,              -- when it was done, counted within that run, or NULL
    content TEXT, pixels BLOB, look BLOB, more_frames INTEGER,
    answers TEXT, answered INTEGER, -- the run that made them
    duplicate_of TEXT, cause TEXT, error TEXT, open_seconds REAL, answer_seconds REAL, thumbnail BLOB
);
CREATE UNIQUE INDEX by_position ON pictures (run, position);
CREATE INDEX by_done ON pictures (run, done);
CREATE INDEX by_content ON pictures (content);
"""


class Journal:
    """One file, in use by one run at a time. Used in one thread."""

    def __init__(self, path: Path, out: Path) -> None:
        self.path, self.out = path, out
        self.run = 0
        self._db: sqlite3.Connection | None = None
        self._inode = (0, 0)
        self._count = 0  # done in this run

    def open(self, identity: Mapping[str, Any], *, overwrite: bool) -> None:
        """Begin, or go on with what the same settings began. Raises BatchError for the journal of others."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists() and not self._is_journal():
            raise BatchError(f"{self.path}: exists and is no journal of a batch run; give another --out")
        with self._faults():
            self._connect()
            if overwrite:
                self._forget()
            if not self._rows("SELECT 1 FROM sqlite_master LIMIT 1"):
                about: dict[str, Any] = {"format": FORMAT, "run": 0, "settings": dict(identity)}
                with self._transaction():
                    for statement in filter(str.strip, SCHEMA.split(";")):
                        self._execute(statement)
                    self._connection.executemany(
                        "INSERT INTO about VALUES (?, ?)",
                        [(key, json.dumps(value)) for key, value in about.items()],
                    )
            about = {key: json.loads(value) for key, value in self._rows("SELECT key, value FROM about")}
        if about["format"] != FORMAT:
            raise BatchError(
                f"{self.path}: of another version of vision-lm; give another --out, or --overwrite"
            )
        self._same(about["settings"], json.loads(json.dumps(dict(identity))))
        self.run = about["run"] + 1

    def _same(self, before: dict[str, Any], now: dict[str, Any]) -> None:
        changed = [key for key in now if before.get(key) != now[key]]
        if changed and self._rows("SELECT 1 FROM pictures WHERE answers IS NOT NULL LIMIT 1"):
            what = "; ".join(
                f"{key}: then {_short(before.get(key))}, now {_short(now[key])}" for key in changed[:2]
            )
            raise BatchError(
                f"{self.out}: belongs to a run with other settings ({what}); "
                "give these, another --out, or --overwrite to begin anew"
            )
        with self._faults():
            self._execute("UPDATE about SET value = ? WHERE key = 'settings'", (json.dumps(now),))

    def plan(self, pictures: Iterable[tuple[Item, tuple[str, ...]]]) -> tuple[int, int]:
        """Take down this run's pictures, each with its questions: how many there are, and how many were given twice.

        Raises BatchError where answers would be left out of the output whose pictures are still there.
        """
        columns = f"{PLANNED}, run".split(", ")
        update = ", ".join(f"{one} = excluded.{one}" for one in columns[1:])
        statement = (
            f"INSERT INTO pictures ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))}) "
            f"ON CONFLICT (key) DO UPDATE SET {update}, done = NULL WHERE run != excluded.run"
        )
        position = again = 0
        with self._transaction():
            # What failed is tried again. A picture that could not be read any more has its answers of before.
            nothing = ", ".join(f"{one} = NULL" for one in RESULT.split(", "))
            self._execute(f"UPDATE pictures SET {nothing} WHERE error IS NOT NULL AND answers IS NULL")
            self._execute("UPDATE pictures SET cause = NULL, error = NULL WHERE error IS NOT NULL")
            for item, asked in pictures:
                row = records.planned_row(item, asked, position)
                if self._execute(statement, (*row, self.run)).rowcount:
                    position += 1
                else:
                    again += 1
            self._refuse_to_leave_out()
            self._execute("DELETE FROM pictures WHERE run != ? AND answers IS NULL", (self.run,))
            self._execute("UPDATE about SET value = ? WHERE key = 'run'", (json.dumps(self.run),))
        return position, again

    def _refuse_to_leave_out(self) -> None:
        others = self._execute(
            "SELECT image, source FROM pictures WHERE run = ? AND answers IS NOT NULL "
            "AND source NOT IN (SELECT source FROM pictures WHERE run = ?) ORDER BY position",
            (self.run - 1, self.run),
        )
        left = [image for image, source in others if Source.from_json(source).exists]
        if left:
            raise BatchError(
                f"{self.out}: has answers about pictures that are not among these inputs, {len(left):,} of them "
                f"({left[0]} ...); give them too, another --out, or --overwrite to begin anew"
            )

    def pictures(self) -> Iterator[tuple[Planned, Result | None]]:
        """This run's pictures by position, with what earlier runs know of them."""
        position = -1
        while rows := self._rows(
            f"SELECT {PLANNED}, {RESULT} FROM pictures WHERE run = ? AND position > ? ORDER BY position LIMIT {PAGE}",
            (self.run, position),
        ):
            for row in rows:
                planned, result = records.planned(row), records.result(row[7:])
                position = planned.position
                yield planned, result if result.answers else None

    def answers_to(self, content: str, asked: Sequence[str]) -> Result | None:
        """What an earlier run answered about the same bytes: the file was renamed, or moved."""
        rows = self._rows(
            f"SELECT {RESULT} FROM pictures WHERE content = ? AND asked = ? AND answers IS NOT NULL "
            "AND answered < ? AND duplicate_of IS NULL LIMIT 1",
            (content, json.dumps(asked), self.run),
        )
        return replace(records.result(rows[0]), cause=None, error=None) if rows else None

    def answers_of(self, key: bytes) -> Result:
        """The result of a picture that is done."""
        return records.result(self._rows(f"SELECT {RESULT} FROM pictures WHERE key = ?", (key,))[0])

    def record(self, results: Iterable[tuple[bytes, Result]]) -> None:
        """These are done, in one transaction: once it returns, they outlive a kill and a power cut."""
        update = ", ".join(f"{one} = ?" for one in RESULT.split(", "))
        with self._transaction():
            for key, result in results:
                self._count += 1
                values = (*records.result_row(result), self._count, key)
                self._execute(f"UPDATE pictures SET {update}, done = ? WHERE key = ?", values)

    def done(self, order: Order, after: int) -> Iterator[Done]:
        """What is done in this run beyond `after`, a position or a `Done.done`; by position it ends at a gap."""
        by = "position" if order == "input" else "done"
        with self._faults():
            rows = self._execute(
                f"SELECT {PLANNED}, {RESULT}, done FROM pictures WHERE run = ? AND {by} > ? ORDER BY {by}",
                (self.run, after),
            )
            for row in rows:
                if row[-1] is None:
                    return
                yield Done(records.planned(row), records.result(row[7:-1]), row[-1])

    def in_place(self) -> bool:
        """Whether the file is still where it was: one that was removed is written on, but nobody will find it."""
        try:
            status = os.stat(self.path)
        except OSError:
            return False
        return (status.st_dev, status.st_ino) == self._inode

    def restore(self) -> None:
        """Put a removed journal back, folder and all, from what is still open. Raises BatchError."""
        if self.path.exists():
            raise BatchError(f"{self.path}: another file has taken its place; one run at a time, run again")
        restored = self.path.with_name(self.path.name + ".partial")
        with self._faults():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            copy = sqlite3.connect(restored)
            self._connection.backup(copy)
            copy.close()
            self.close()
            restored.replace(self.path)
            self._connect()

    def close(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None

    @property
    def _connection(self) -> sqlite3.Connection:
        assert self._db is not None
        return self._db

    def _connect(self) -> None:
        self._db = sqlite3.connect(self.path, timeout=0, isolation_level=None)
        self._execute(
            "PRAGMA locking_mode = EXCLUSIVE"
        )  # a second run is refused; a kill gives the lock back
        self._execute("PRAGMA journal_mode = WAL")
        self._execute("PRAGMA synchronous = FULL")
        self._execute("BEGIN IMMEDIATE")  # takes the lock
        self._execute("COMMIT")
        status = os.stat(self.path)
        self._inode = (status.st_dev, status.st_ino)

    def _forget(self) -> None:
        for (table,) in self._rows("SELECT name FROM sqlite_master WHERE type = 'table'"):
            self._execute(f"DROP TABLE {table}")

    def _is_journal(self) -> bool:
        with self.path.open("rb") as file:
            start = file.read(16)
        return start in (b"", b"SQLite format 3\0")

    def _execute(self, statement: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        return self._connection.execute(statement, values)

    def _rows(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        with self._faults():
            return self._execute(statement, values).fetchall()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """All of it or nothing, whatever comes between: a fault, or an interrupt from the keyboard."""
        with self._faults():
            try:
                self._execute("BEGIN IMMEDIATE")
                yield
                self._execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._execute("ROLLBACK")
                raise

    @contextmanager
    def _faults(self) -> Iterator[None]:
        """What SQLite cannot do, in one line."""
        try:
            yield
        except sqlite3.Error as error:
            if "locked" in str(error):
                reason, remedy = "in use by another run", "wait for it, or give another --out"
            elif isinstance(error, sqlite3.OperationalError):
                reason, remedy = (
                    str(error),
                    "make room, or put that right, and run again: all rows so far are safe",
                )
            else:
                reason, remedy = str(error), "give another --out"
            raise BatchError(f"{self.path}: {reason}; {remedy}") from error


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."
