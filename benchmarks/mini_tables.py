"""Writes the tables of docs/mini.md from docs/mini_quality.json, so that the page says what was measured.

    python benchmarks/mini_tables.py [--quality docs/mini_quality.json] [--page docs/mini.md]

Each table stands between `<!-- NAME -->` and `<!-- end NAME -->`, and is replaced as a whole.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

SCORE_HEAD = (
    "| task | kind | questions | right | 95% interval | blind | calibration error | by chance |",
    "|---|---|---|---|---|---|---|---|",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quality", type=Path, default=Path("docs/mini_quality.json"))
    parser.add_argument("--page", type=Path, default=Path("docs/mini.md"))
    arguments = parser.parse_args()
    quality = json.loads(arguments.quality.read_text(encoding="utf-8"))
    page = arguments.page.read_text(encoding="utf-8")
    for name, lines in (
        ("scores", scores(quality)),
        ("captions", captions(quality["captions"])),
        ("photographs", photographs(quality["photographs"])),
    ):
        page = replaced(page, name, "\n".join(lines))
    arguments.page.write_text(page, encoding="utf-8")


def replaced(page: str, name: str, table: str) -> str:
    """The page with another table of this name. Raises SystemExit if it has no place for it."""
    place = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)
    if not place.search(page):
        raise SystemExit(
            f"the page has no <!-- {name} --> … <!-- end {name} -->; put them where the table is to be"
        )
    return place.sub(lambda found: f"{found[1]}{table}\n{found[2]}", page, count=1)


def scores(quality: Mapping[str, Any]) -> Iterator[str]:
    yield from SCORE_HEAD
    for task, rows in quality.items():
        yield from (score_line(task, row) for row in (rows if isinstance(rows, list) else ()))


def score_line(task: str, row: Mapping[str, Any]) -> str:
    blind = "" if row["blind"] is None else f"{row['blind']:.1%}"
    return (
        f"| {task} | {row['kind']} | {row['questions']:,} | {row['accuracy']:.1%} "
        f"| {row['low']:.1%}–{row['high']:.1%} | {blind} | {row['calibration_error']:.1%} | {row['by_chance']:.1%} |"
    )


def captions(rows: Mapping[str, Any]) -> Iterator[str]:
    yield "| captions of the held-out scenes | objects named | of these there | 95% interval | of those there named |"
    yield "|---|---|---|---|---|"
    for length, row in rows.items():
        interval = f"{row['low']:.1%}–{row['high']:.1%}"
        yield f"| {length} | {row['named']:,} | {row['true']:.1%} | {interval} | {row['recall']:.1%} |"


def photographs(rows: Mapping[str, Any]) -> Iterator[str]:
    yield '| photograph | short | normal | "What is this?" | cat? dog? person? |'
    yield "|---|---|---|---|---|"
    for name, row in rows.items():
        said, answers = row["said"], dict(row["answers"])
        this = answers.pop("What is this?")
        yield f"| {name} | {said['short']} | {said['normal']} | {this} | {', '.join(answers.values())} |"


if __name__ == "__main__":
    main()
