"""Kills, removed folders: run again, and every picture is there exactly once."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.batch.conftest import Answer, draw, json_rows, untimed, untimed_close
from tests.batch.processes import Commands, batch, lines, wait_until
from vision_lm.batch import pipeline, records
from vision_lm.errors import BatchError

PICTURES, KILLS = 100, 4  # of `many`


def test_killed_at_random_moments_it_ends_with_the_same_rows(
    commands: Commands, answer: Answer, many: Path, tmp_path: Path
) -> None:
    """SIGKILL, several times, at any point of the work: afterwards no row is missing, double or different."""
    chance, killed = random.Random(7), 0
    out, partial = tmp_path / "out.jsonl", tmp_path / "out.jsonl.partial"
    for kill in range(KILLS):
        more = chance.randint(1, PICTURES // KILLS)
        process = commands.start(*batch(many, out))
        # Its rows begin anew each time: wait until it has done more than before it was killed.
        done = kill * PICTURES // KILLS + more

        def far_enough(done: int = done) -> bool:
            return lines(partial) >= done or lines(out) > 0

        if wait_until(lambda: (tmp_path / "out.jsonl.journal").exists(), process) and wait_until(
            far_enough, process
        ):
            time.sleep(chance.random() / 5)
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        killed += commands.finish() == -signal.SIGKILL
    status, printed = commands.run(*batch(many, out))
    assert status == 2 and "Traceback" not in printed  # 2: of the corrupt ones
    answer(many, tmp_path / "whole.jsonl", caption="normal")
    rows, whole = json_rows(out), json_rows(tmp_path / "whole.jsonl")
    assert untimed_close(rows, whole)
    assert len(rows) == PICTURES and [row["error"] for row in rows].count(None) == PICTURES - PICTURES // 50
    assert killed >= 2, "the machine is so fast that the kills came too late"
    assert not list(tmp_path.glob("*.partial"))


def test_a_removed_folder_comes_back(commands: Commands, many: Path, tmp_path: Path) -> None:
    """The output folder is removed in the middle of the work: it is made again, no row is missing, a line says so."""
    out = tmp_path / "results" / "out.jsonl"
    process = commands.start(*batch(many, out))
    assert wait_until(lambda: lines(out.with_name("out.jsonl.partial")) > 0, process)
    shutil.rmtree(out.parent)
    assert commands.finish() == 2
    printed = commands.log.read_text()
    assert "was removed while the run worked" in printed and "Traceback" not in printed
    rows = json_rows(out)
    assert len({row["image"] for row in rows}) == len(rows) == PICTURES
    assert f"{PICTURES - 2}  answered" in printed  # none twice


def test_ctrl_c_keeps_what_is_answered(commands: Commands, many: Path, tmp_path: Path) -> None:
    """Exit status 130 at once, a line that says how to go on, no process left behind; then the rest is answered."""
    out = tmp_path / "out.jsonl"
    process = commands.start(*batch(many, out))
    assert wait_until(lambda: lines(out.with_name("out.jsonl.partial")) > 0, process)
    os.kill(process, signal.SIGINT)
    assert commands.finish() == 130
    assert commands.log.read_text() == f"vision-lm: stopped; the same command goes on with {out}\n"
    commands.run(*batch(many, out))
    assert "kept from an earlier run" in commands.log.read_text()
    assert len(json_rows(out)) == PICTURES


def test_an_interrupt_while_rows_are_written_loses_none(
    answer: Answer, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The half-written ones are taken back and written again before the end."""
    write, written = records.result_row, []

    def interrupted(result: records.Result) -> Any:
        written.append(result)
        if len(written) == 2:
            raise KeyboardInterrupt
        return write(result)

    monkeypatch.setattr(records, "result_row", interrupted)
    monkeypatch.setattr(pipeline, "COMMIT_SECONDS", 600)  # all six at once
    with pytest.raises(KeyboardInterrupt):
        answer(photos, tmp_path / "out.jsonl")
    assert answer(photos, tmp_path / "out.jsonl").kept == 6


def test_only_what_changed_is_answered_again(answer: Answer, photos: Path, tmp_path: Path) -> None:
    """By the hash of a file's bytes: another picture under the same name, a new one, a renamed one, a removed one."""
    out = tmp_path / "out.jsonl"
    answer(photos, out)
    before = {Path(row["image"]).name: row for row in json_rows(out)}
    draw(photos / "0001.png", 77)
    draw(photos / "0002b.png", 78)
    (photos / "0003.png").rename(photos / "renamed.png")
    (photos / "0004.png").unlink()
    os.utime(photos / "0000.png", (1, 1))
    summary = answer(photos, out)
    assert (summary.pictures, summary.answered, summary.kept) == (6, 2, 4)
    after = {Path(row["image"]).name: row for row in json_rows(out)}
    assert list(after) == ["0000.png", "0001.png", "0002.png", "0002b.png", "0005.png", "renamed.png"]
    assert after["renamed.png"]["caption"] == before["0003.png"]["caption"]
    assert after["0001.png"]["content"] != before["0001.png"]["content"]
    answer(photos, tmp_path / "whole.jsonl")
    assert untimed(json_rows(out)) == untimed(json_rows(tmp_path / "whole.jsonl"))


def test_a_journal_from_before_captions_were_checked(answer: Answer, photos: Path, tmp_path: Path) -> None:
    """It says nothing of it: its answers are those of a run that checks nothing, and of no other."""
    out = tmp_path / "out.jsonl"
    answer(photos, out)
    with sqlite3.connect(f"{out}.journal") as journal:
        journal.execute("UPDATE about SET value = json_remove(value, '$.checked') WHERE key = 'settings'")
        journal.execute("UPDATE pictures SET answers = json_remove(answers, '$[0][5]')")
    journal.close()
    with pytest.raises(BatchError, match="checked: then null, now true"):
        answer(photos, out, checked=True)
    assert answer(photos, out).kept == 6


def test_what_failed_is_tried_again(answer: Answer, photos: Path, tmp_path: Path) -> None:
    """A file that was damaged, and has been put right."""
    whole = (photos / "0002.png").read_bytes()
    (photos / "0002.png").write_bytes(whole[:50])
    assert answer(photos, tmp_path / "out.csv").failed == 1
    (photos / "0002.png").write_bytes(whole)
    summary = answer(photos, tmp_path / "out.csv")
    assert (summary.answered, summary.kept, summary.failed) == (1, 5, 0)


def test_a_picture_that_can_no_longer_be_read_keeps_no_text(
    answer: Answer, photos: Path, tmp_path: Path
) -> None:
    """Of a folder of texts: the old one goes, so that it is not taken for the new picture's, nor for someone else's."""
    out = tmp_path / "texts"
    answer(photos, out)
    before = {path.name: path.read_text() for path in out.glob("*.txt")}
    whole = (photos / "0002.png").read_bytes()
    (photos / "0002.png").write_bytes(whole[:50])
    assert answer(photos, out).failed == 1
    assert {path.name for path in out.glob("*.txt")} == before.keys() - {"0002.txt"}
    assert answer(photos, out).failed == 1  # not refused: nothing there is of another run
    (photos / "0002.png").write_bytes(whole)
    assert answer(photos, out).failed == 0
    assert {path.name: path.read_text() for path in out.glob("*.txt")} == before


def test_duplicates_after_a_resume_are_those_of_one_run(answer: Answer, tmp_path: Path) -> None:
    """The original is removed, a new one comes before: each run decides as if it were the only one."""
    folder, out = tmp_path / "in", tmp_path / "out.jsonl"
    first = draw(folder / "b.png", 1)
    for name in ("c.png", "d.png"):
        (folder / name).write_bytes(first.read_bytes())
    draw(folder / "e.png", 2)

    def duplicates() -> list[str | None]:
        answer(folder, out, dedupe="perceptual")
        return [row["duplicate_of"] and Path(row["duplicate_of"]).name for row in json_rows(out)]

    assert duplicates() == [None, "b.png", "b.png", None]
    first.unlink()
    assert duplicates() == [None, "c.png", None]
    (folder / "a.png").write_bytes((folder / "d.png").read_bytes())
    assert duplicates() == [None, "a.png", "a.png", None]


def test_two_runs_at_once_are_refused(answer: Answer, photos: Path, tmp_path: Path) -> None:
    """The second would write over the first."""
    answer(photos, tmp_path / "out.jsonl")
    with sqlite3.connect(tmp_path / "out.jsonl.journal", isolation_level=None) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(BatchError, match="in use by another run"):
            answer(photos, tmp_path / "out.jsonl")
        other.execute("COMMIT")
    other.close()
    assert answer(photos, tmp_path / "out.jsonl").kept == 6
