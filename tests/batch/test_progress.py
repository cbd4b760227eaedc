"""The bar: it counts every picture, and times those that this run answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tqdm

from tests.batch.conftest import Answer, draw


def test_what_is_kept_is_no_work_of_this_run(
    answer: Answer,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Of a resumed run the rate, and with it the remaining time, would else be that of reading, not of answering."""
    bars = []

    class Watched(tqdm.tqdm):  # type: ignore[type-arg]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self.timed = 0.0
            bars.append(self)

        def update(self, n: float | None = 1) -> bool | None:
            self.timed += n or 0
            return super().update(n)

    monkeypatch.setattr(tqdm, "tqdm", Watched)
    answer(photos, tmp_path / "out.jsonl", progress=True)
    for number in range(2):
        draw(photos / f"new {number}.png", 50 + number)
    answer(photos, tmp_path / "out.jsonl", progress=True)
    assert [(bar.initial, bar.timed, bar.n, bar.total) for bar in bars] == [(0, 6, 6, 6), (6, 2, 8, 8)]
    assert "8/8" in capsys.readouterr().err


def test_a_bar_that_is_switched_off(
    answer: Answer, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TQDM_DISABLE is read when tqdm is loaded; a bar that it disables has nothing to show, and the run goes on."""

    class Off(tqdm.tqdm):  # type: ignore[type-arg]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **{**options, "disable": True})

    monkeypatch.setattr(tqdm, "tqdm", Off)
    assert answer(photos, tmp_path / "out.jsonl", progress=True).answered == 6
