"""A disk that is full: nothing that was answered is lost, whatever the output is."""

from __future__ import annotations

import re
import sqlite3
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from tests.batch.conftest import Answer, csv_rows, json_rows, untimed_close
from tests.batch.processes import Commands, batch

PICTURES = 100  # of `many`
# The output, and what its disk has room for: some of its rows, or of a text that is shorter than the others.
OUTPUTS = {"out.jsonl": 20_000, "out.csv": 10_000, "out.parquet": 1_000, "out.sqlite": 20_000, "texts": 25}


def rows_of(out: Path) -> list[dict[str, Any]]:
    """As others read them; of a folder the texts by name."""
    if out.is_dir():
        return [{path.name: path.read_text()} for path in sorted(out.glob("*.txt"))]
    if out.suffix == ".jsonl":
        return json_rows(out)
    if out.suffix == ".parquet":
        return list(pyarrow.parquet.read_table(out).to_pylist())
    if out.suffix == ".sqlite":
        with sqlite3.connect(out) as db:
            db.row_factory = sqlite3.Row
            return [dict(row) for row in db.execute("SELECT * FROM answers")]
    rows: list[dict[str, Any]] = [{key: value or None for key, value in row.items()} for row in csv_rows(out)]
    return [row | {"caption_confidence": float(row["caption_confidence"] or 0)} for row in rows]


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_full_disk_loses_nothing(
    name: str, commands: Commands, answer: Answer, many: Path, tmp_path: Path
) -> None:
    """First for the journal, then for the output alone: each time one line that says what to do, and exit status 2.

    With room again the rest is answered and the rest only, and the rows are those of a run that was never held up.
    """
    out = tmp_path / name
    for full in ({"file_bytes": 180_000}, {"output_bytes": OUTPUTS[name]}):
        status, printed = commands.run(*batch(many, out), **full)
        assert status == 2, printed
        (line,) = [one for one in printed.splitlines() if one.startswith("vision-lm")]
        assert str(out) in line and "run again" in line and "safe" in line and "Traceback" not in printed
        assert not out.is_file()  # whoever reads the output never sees half of it
    status, printed = commands.run(*batch(many, out))
    counts = {name: int(count) for count, name in re.findall(r" (\d+)  (answered|kept|failed)", printed)}
    assert status == 2 and counts.pop("failed") == 2  # damaged, both of them
    assert counts["kept"] > 0 and sum(counts.values()) == PICTURES - 2
    whole = tmp_path / f"whole {name}"
    answer(many, whole, caption="normal")
    rows = rows_of(out)
    assert len(rows) == PICTURES - 2 * out.is_dir()
    assert untimed_close(rows, rows_of(whole))
    assert not list(tmp_path.rglob("*.partial"))
