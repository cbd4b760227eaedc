"""Lists of pictures: text, CSV, TSV and Parquet, with their other columns."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from vision_lm.errors import BatchError

LIST_SUFFIXES = (".txt", ".csv", ".tsv", ".parquet")
IMAGE_COLUMNS = ("image", "path", "file", "filename", "file_name", "url")
ROWS_AT_ONCE = 1024  # of a Parquet file


@dataclass(frozen=True)
class Record:
    """One picture of a list."""

    path: str  # or URL
    columns: dict[str, str] = field(default_factory=dict)


def read_list(path: Path, image_column: str | None) -> Iterator[Record]:
    """The records of a list, by its suffix. Raises BatchError."""
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        yield from _parquet(path, image_column)
        return
    try:
        # What is no UTF-8 may still be the name of a file.
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            if suffix == ".txt":
                yield from read_lines(file, str(path))
            else:
                yield from _csv(
                    path, csv.DictReader(file, delimiter="\t" if suffix == ".tsv" else ","), image_column
                )
    except (OSError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise BatchError(f"{path}: cannot be read ({reason}); give a readable {suffix} list") from error


def read_lines(lines: Iterable[str], where: str) -> Iterator[Record]:
    """A path or URL a line; blank lines are left out."""
    for number, line in enumerate(lines, start=1):
        path = line.strip("\r\n")
        if "\0" in path:
            raise BatchError(f"{where} line {number}: not a text list; give a path or URL a line")
        if path.strip():
            yield Record(path)


def _csv(path: Path, rows: csv.DictReader[str], image_column: str | None) -> Iterator[Record]:
    header = list(rows.fieldnames or ())
    column = _image_column(path, header, image_column)
    for row in rows:
        if not row[column]:
            raise BatchError(
                f"{path} line {rows.line_num}: column {column!r} is empty; give each row a path or URL"
            )
        # None holds what a row has beyond its header, and is what a short row lacks.
        yield Record(row[column], {key: row[key] or "" for key in header})


def _parquet(path: Path, image_column: str | None) -> Iterator[Record]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            column = _image_column(path, schema.names, image_column)
            kind = schema.field(column).type
            if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
                raise BatchError(
                    f"{path}: column {column!r} holds {kind}, not text; give a column of paths or URLs"
                )
            plain = [one.name for one in schema if not pyarrow.types.is_nested(one.type)]
            number = 0
            for batch in file.iter_batches(ROWS_AT_ONCE, columns=plain):
                for row in batch.to_pylist():
                    number += 1
                    if not row[column]:
                        raise BatchError(
                            f"{path} row {number}: column {column!r} is empty; give each row a path or URL"
                        )
                    columns = {key: "" if value is None else str(value) for key, value in row.items()}
                    yield Record(row[column], columns)
    except (OSError, pyarrow.ArrowException) as error:
        reason = " ".join(str(error).split())[:120]
        raise BatchError(f"{path}: cannot be read as Parquet ({reason}); make or fetch it again") from error


def _image_column(path: Path, header: list[str], wanted: str | None) -> str:
    names = (wanted,) if wanted else IMAGE_COLUMNS
    if (found := next((name for name in names if name in header), None)) is not None:
        return found
    has = ", ".join(header)[:200] or "nothing"
    raise BatchError(
        f"{path}: no column {' or '.join(names)}; it has {has}: name the one with the paths by --image-column"
    )
