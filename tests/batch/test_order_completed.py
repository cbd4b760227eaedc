"""`--order completed`: rows as the answers come, each exactly once."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.batch.conftest import Answer, json_rows, untimed_close
from tests.batch.processes import Commands, batch, lines, wait_until
from vision_lm.batch.answering import Answering

ORDER = ["--order", "completed"]


def test_a_row_comes_when_its_answer_does(
    answer: Answer, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first picture's answer is held up until the others are there: its row is the last, or by input the first."""
    usual, others = Answering._answer, threading.Semaphore(0)

    def held_up(self: Answering, number: int, *rest: Any) -> None:
        if number == 0:
            for _ in range(5):
                assert others.acquire(timeout=60)
        usual(self, number, *rest)
        if number != 0:
            others.release()

    monkeypatch.setattr(Answering, "_answer", held_up)
    names = [path.name for path in sorted(photos.iterdir())]
    said = {}
    for order in ("completed", "input"):
        summary = answer(photos, tmp_path / f"{order}.jsonl", order=order)
        said[order] = [Path(row["image"]).name for row in json_rows(tmp_path / f"{order}.jsonl")]
        assert summary.pictures == summary.answered == 6
    assert said["input"] == names
    assert said["completed"][-1] == names[0] and sorted(said["completed"]) == names


def test_killed_and_resumed_each_row_is_there_once(
    commands: Commands, answer: Answer, many: Path, tmp_path: Path
) -> None:
    """By the command line, in the middle of the work and again after its end: the rows of a run in the input's order."""
    out, partial = tmp_path / "out.jsonl", tmp_path / "out.jsonl.partial"
    process = commands.start(*batch(many, out), *ORDER)
    assert wait_until(lambda: lines(partial) > 0, process)
    with suppress(ProcessLookupError):  # a fast machine has done all in the meantime
        os.kill(process, signal.SIGKILL)
    assert (commands.finish() == -signal.SIGKILL) == (not out.exists())
    answer(many, tmp_path / "whole.jsonl", caption="normal")
    for _ in range(2):
        status, printed = commands.run(*batch(many, out), *ORDER)
        assert status == 2 and "kept from an earlier run" in printed  # 2: of the damaged ones
        rows = sorted(json_rows(out), key=lambda row: str(row["image"]))
        assert untimed_close(rows, json_rows(tmp_path / "whole.jsonl"))
