"""One request about many pictures: a bounded number under way, each answer as it comes."""

from __future__ import annotations

import csv
import io
import json
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demo.backend import Backend, Reply, Settings
from demo.failures import told
from demo.picture import open_picture
from vision_lm.prompts import CaptionLength, Turn, check_question

AT_ONCE = 8  # pictures under way
LOOK_EVERY = 0.3  # seconds
THUMBNAIL = 112  # pixels of the longest side
COLUMNS = ("image", "text", "confidence", "finish_reason", "unanswerable", "unconfirmed", "error")


@dataclass(frozen=True)
class Job:
    """What is asked about every picture: a question, or without one a caption."""

    settings: Settings
    question: str | None = None
    length: CaptionLength = "normal"


@dataclass(frozen=True)
class Row:
    """What came of one picture."""

    image: str  # the file's name
    reply: Reply | None = None
    error: str = ""
    thumbnail: str = ""  # a data URL

    @property
    def values(self) -> dict[str, str | float | bool | list[str] | None]:
        """By COLUMNS; None where there is nothing."""
        reply = self.reply or Reply("")
        sure = None if reply.confidence is None else round(reply.confidence, 4)
        unsure = reply.unanswerable if self.reply else None
        taken_back = list(reply.unconfirmed) or None
        values = self.image, reply.text, sure, reply.finish_reason, unsure, taken_back, self.error or None
        return dict(zip(COLUMNS, values, strict=True))


@dataclass(frozen=True)
class Progress:
    rows: tuple[Row, ...]  # those that are done, in the order of the files
    total: int


def run(backend: Backend, files: Sequence[Path], job: Job, stop: threading.Event) -> Iterator[Progress]:
    """Whenever there is something new to see; the last one has every row that there will be.

    Raises RequestError for a question that cannot be asked. What is wrong with a file stands in its row.
    """
    if job.question is not None:
        check_question(job.question)
    done: dict[int, Row] = {}
    with ThreadPoolExecutor(AT_ONCE, "vision-lm demo batch") as threads:
        waiting: dict[Future[Row | None], int] = {
            threads.submit(_row, backend, file, job, stop): number for number, file in enumerate(files)
        }
        try:
            while waiting:
                yield Progress(_in_order(done), len(files))
                until = (
                    time.monotonic() + LOOK_EVERY + len(done) / 200
                )  # the more there is to draw, the more rarely
                while waiting and (left := until - time.monotonic()) > 0:
                    finished, _ = wait(waiting, left, FIRST_COMPLETED)
                    for one in finished:
                        number, row = waiting.pop(one), one.result()
                        if row is not None:
                            done[number] = row
        finally:
            stop.set()  # also if the visitor is gone
    yield Progress(_in_order(done), len(files))


def to_csv(rows: Sequence[Row]) -> str:
    """A list is JSON in it, as in the rows of `vision-lm batch`."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    for row in rows:
        lists = {name: _json(value) for name, value in row.values.items() if isinstance(value, list)}
        writer.writerow(row.values | lists)
    return text.getvalue()


def to_jsonl(rows: Sequence[Row]) -> str:
    return "".join(_json(row.values) + "\n" for row in rows)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _row(backend: Backend, file: Path, job: Job, stop: threading.Event) -> Row | None:
    """None if it was stopped first."""
    if stop.is_set():
        return None
    thumbnail, reply = "", None
    try:
        thumbnail = open_picture(file, THUMBNAIL).view
        if job.question is not None:
            writing = backend.answer([Turn(job.question, (file,))], job.settings)
        else:
            writing = backend.caption(file, job.length, job.settings)
        for so_far in writing:
            reply = so_far
            if stop.is_set():
                writing.close()
                return None
    except Exception as error:  # whatever it is: the other files go on
        return Row(file.name, error=told(error), thumbnail=thumbnail)
    return Row(file.name, reply, thumbnail=thumbnail)


def _in_order(done: dict[int, Row]) -> tuple[Row, ...]:
    return tuple(done[number] for number in sorted(done))
