"""A picture that was answered, and cannot be read any more: its answers stay."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.batch.conftest import Answer, csv_rows, draw, draw_many, json_rows, untimed
from vision_lm.batch import pipeline


def linked(share: Path, folder: Path) -> Path:
    """A folder of links into a share, which may be gone while the links are still there."""
    folder.mkdir()
    for path in sorted(share.iterdir()):
        (folder / path.name).symlink_to(path)
    return folder


def by_name(out: Path) -> dict[str, dict[str, Any]]:
    return {Path(row["image"]).name: row for row in untimed(json_rows(out))}


def test_a_share_that_is_gone_for_a_while_costs_no_answer(answer: Answer, tmp_path: Path) -> None:
    """The rows have answers and error meanwhile; once the share is back nothing is answered again, in whatever form."""
    share, out = draw_many(tmp_path / "share", 4), tmp_path / "out.jsonl"
    folder = linked(share, tmp_path / "in")
    draw(folder / "own.png", 9)
    answer(folder, out)
    answer(folder, tmp_path / "texts")
    before, texts = by_name(out), {one.name: one.read_text() for one in (tmp_path / "texts").glob("*.txt")}

    share.rename(tmp_path / "away")
    for _ in range(2):  # the error of one run does not cost the next one the answers
        summary = answer(folder, out)
        assert (summary.pictures, summary.failed, summary.kept, summary.answered) == (5, 4, 1, 0)
        during = by_name(out)
        assert during["own.png"] == before["own.png"]
        for name in before.keys() - {"own.png"}:
            assert "the answers are of an earlier run" in during[name]["error"] and during[name]["cause"]
            assert during[name] | {"error": None, "cause": None} == before[name]
    assert all(one.image.endswith("own.png") or one.answer_seconds == 0 for one in summary.slowest)
    answer(folder, tmp_path / "texts")
    assert {one.name: one.read_text() for one in (tmp_path / "texts").glob("*.txt")} == texts

    (tmp_path / "away").rename(share)
    for place in (out, tmp_path / "texts"):
        summary = answer(folder, place)
        assert (summary.kept, summary.answered, summary.failed) == (5, 0, 0)
    assert by_name(out) == before


def test_duplicates_of_what_is_gone_for_a_while(answer: Answer, tmp_path: Path) -> None:
    """They are read and have its answers, without its error; when all come back they are as before."""
    share, out = draw_many(tmp_path / "share", 2), tmp_path / "out.jsonl"
    folder = linked(share, tmp_path / "in")
    shutil.copy(share / "0000.png", folder / "copy.png")
    shutil.copy(share / "0000.png", share / "zzzz.png")
    (folder / "zzzz.png").symlink_to(share / "zzzz.png")
    answer(folder, out, dedupe="perceptual")
    before = by_name(out)
    assert [bool(row["duplicate_of"]) for row in before.values()] == [False, False, True, True]
    share.rename(tmp_path / "away")
    summary = answer(folder, out, dedupe="perceptual")
    assert (summary.failed, summary.duplicates, summary.answered) == (3, 1, 0)
    assert by_name(out)["copy.png"] == before["copy.png"]
    (tmp_path / "away").rename(share)
    assert answer(folder, out, dedupe="perceptual").answered == 0
    assert by_name(out) == before


def test_a_new_name_for_what_is_gone(answer: Answer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bytes elsewhere have the answers that were kept, and not the error of the place that is gone."""
    monkeypatch.setattr(pipeline, "COMMIT_ROWS", 1)
    share = draw_many(
        tmp_path / "share", 40
    )  # more than are opened at once: the last one when the first is done
    folder, out = linked(share, tmp_path / "in"), tmp_path / "out.csv"
    answer(folder, out, workers=1)
    shutil.move(share / "0000.png", folder / "zzzz.png")
    summary = answer(folder, out, workers=1)
    assert (summary.failed, summary.kept, summary.answered) == (1, 40, 0)
    gone, *_, new = csv_rows(out)
    assert gone["error"] and not new["error"] and gone["caption"] == new["caption"] != ""
