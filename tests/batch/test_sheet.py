"""The contact sheet: whole in one file, and nothing in it but text and small pictures."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

from tests.batch.conftest import Answer, draw, draw_many, json_rows


class Page(HTMLParser):
    """What a browser would make of it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def test_a_card_for_each_picture(answer: Answer, tmp_path: Path) -> None:
    """With its answers, or its error; a name that is markup is shown as a name. It loads nothing."""
    evil = "<img src=x onerror=alert(1)>.png"
    draw(tmp_path / "in" / evil, 1)
    draw(tmp_path / "in" / "b.png", 2)
    (tmp_path / "in" / "c.png").write_bytes(b"")
    answer(tmp_path / "in", tmp_path / "out.jsonl", sheet=tmp_path / "sheet.html", ask=("Is <b>it</b> red?",))
    page, rows = Page(tmp_path / "sheet.html"), json_rows(tmp_path / "out.jsonl")
    assert len(page.all("article")) == 3
    for row in rows:
        assert row["image"] in page.text
        assert (row["caption"] or row["error"]) in page.text
    assert "Is <b>it</b> red?" in page.text
    images = page.all("img")
    assert len(images) == 2 and all(str(one["src"]).startswith("data:image/jpeg;base64,") for one in images)
    for _, attributes in page.elements:
        assert not attributes.keys() & {"onerror", "onclick", "href"}
        assert "http" not in str(attributes.get("src"))
    assert len(page.all("script")) == 1


def test_a_sheet_of_many_shows_some(answer: Answer, tmp_path: Path) -> None:
    """At even distances, with a word about it; and it can be had after the run, with answers that are kept."""
    draw_many(tmp_path / "in", 10)
    answer(tmp_path / "in", tmp_path / "out.jsonl")
    summary = answer(tmp_path / "in", tmp_path / "out.jsonl", sheet=tmp_path / "sheet.html", sheet_pictures=4)
    page = Page(tmp_path / "sheet.html")
    assert summary.kept == 10
    assert [int(str(one["data-position"])) for one in page.all("article")] == [2, 4, 7, 9]
    assert len(page.all("img")) == 4
    assert "10 pictures; 4 of them are shown" in page.text
