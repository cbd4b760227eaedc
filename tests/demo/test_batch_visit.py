"""A person's visit to the page, in a real browser: many pictures at once."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from PIL import Image

from demo.in_process import InProcess
from tests.demo.conftest import QUESTION, Visit, Visiting, serving
from vision_lm.model import VisionLM

pytestmark = pytest.mark.slow


def drop(visit: Visit, files: list[Path]) -> None:
    """Choose the batch tab, and give it files."""
    visit.page.get_by_role("tab", name="Many pictures").click()
    visit.page.locator("#files input[type=file]").set_input_files(files)
    visit.page.locator("#files").get_by_text(files[-1].name.split(".")[0]).first.wait_for()


def download(visit: Visit, name: str) -> str:
    with visit.page.expect_download() as download:
        visit.button(name).click()
    return Path(download.value.path()).read_text(encoding="utf-8")


def column(visit: Visit, number: int) -> list[str]:
    return visit.page.locator(f"#answers tbody td:nth-child({number})").all_inner_texts()


def test_many_pictures_become_a_table_and_two_files(
    visiting: Visiting, address: str, looking: VisionLM, files: list[Path], no_picture: Path
) -> None:
    """Drop, start, watch, sort with the keyboard, download: each picture's caption is `vlm.caption`; the bad one says why."""
    with visiting(address) as visit:
        given = [files[2], no_picture, files[0], files[1]]
        drop(visit, given)
        visit.button("Start").click()
        visit.page.get_by_text("4 of 4 pictures, 1 of them could not be answered: done.").wait_for()
        assert visit.page.get_by_role("progressbar", name="Pictures").get_attribute("value") == "4"
        expected = {path.name: looking.caption(path, "short") for path in files}
        assert column(visit, 2) == [path.name for path in given]
        texts = dict(zip(column(visit, 2), column(visit, 3), strict=True))
        for name, answer in expected.items():
            assert texts[name].split() == answer.text.split()
        assert texts["notes.png"].startswith("notes.png: this is text, not a picture")
        assert visit.page.locator("#answers tbody img").count() == 3
        assert visit.serious_violations() == []

        by_name = visit.page.get_by_role("button", name="File", exact=True)
        by_name.focus()
        visit.page.keyboard.press("Enter")
        assert column(visit, 2) == ["apple.png", "boat.png", "cube.png", "notes.png"]
        assert visit.page.get_by_role("columnheader", name="File").get_attribute("aria-sort") == "ascending"
        visit.page.keyboard.press("Enter")
        assert column(visit, 2) == ["notes.png", "cube.png", "boat.png", "apple.png"]
        visit.page.get_by_role("button", name="Confidence", exact=True).click()
        sure = sorted(expected, key=lambda name: expected[name].confidence)
        assert column(visit, 2) == ["notes.png", *sure]

        rows = list(csv.DictReader(download(visit, "Download CSV").splitlines(keepends=True)))
        objects = [json.loads(line) for line in download(visit, "Download JSONL").splitlines()]
        assert [row["image"] for row in rows] == [one["image"] for one in objects] == [p.name for p in given]
        for row, one in zip(rows, objects, strict=True):
            answer = expected.get(one["image"])
            assert row["text"] == one["text"] == (answer.text if answer else "")
            assert one["confidence"] == (pytest.approx(answer.confidence, abs=1e-4) if answer else None)
            assert bool(one["error"]) == bool(row["error"]) == (answer is None)


def test_one_question_about_each(
    visiting: Visiting, address: str, looking: VisionLM, files: list[Path]
) -> None:
    """A question instead of a caption, on a phone; an empty one is refused, and nothing is lost."""
    with visiting(address, 390, 844) as visit:
        drop(visit, files)
        visit.page.get_by_label("Ask about each").check()
        question = visit.page.get_by_role("textbox", name="Question", exact=True)
        visit.button("Start").click()
        visit.page.get_by_text("the question is empty").wait_for()
        question.fill(QUESTION)
        visit.button("Start").click()
        visit.page.get_by_text("3 of 3 pictures: done.").wait_for()
        expected = [looking.ask(path, QUESTION).text.split() for path in files]
        assert [text.split() for text in column(visit, 3)] == expected


def test_a_batch_is_watched_and_stopped(
    visiting: Visiting, slow: VisionLM, tmp_path: Path, pictures: list[Image.Image]
) -> None:
    """Rows come while others still wait; Stop keeps those that are done, to be downloaded."""
    paths = [tmp_path / f"picture{number:02}.png" for number in range(24)]
    for number, path in enumerate(paths):
        pictures[number % len(pictures)].resize((40 + number, 40)).save(path)
    with serving(InProcess({"slow": slow})) as address, visiting(address) as visit:
        drop(visit, paths)
        visit.page.locator(".tabitem:visible").get_by_role("button", name="Settings").click()
        for name, value in (
            ("Temperature", "2"),
            ("Longest answer", "96"),
        ):  # greedy, it would soon repeat itself
            number = visit.page.locator(".tabitem:visible").get_by_label(f"number input for {name}")
            number.fill(value)
            number.press("Tab")
        visit.button("Start").click()
        visit.page.locator("#answers tbody tr").first.wait_for()
        assert visit.button("Stop").is_enabled() and not visit.button("Download CSV").is_enabled()
        visit.button("Stop").click()
        visit.page.get_by_text("of 24 pictures: stopped.").wait_for()
        rows = len(column(visit, 2))
        assert 0 < rows < 24
        assert len(download(visit, "Download JSONL").splitlines()) == rows
        slow.engine.wait()
