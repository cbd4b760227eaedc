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
    "| task | kind | questions | right | 95% interval | blind | of the surest 80% | calibration error | by chance |",
    "|---|---|---|---|---|---|---|---|---|",
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
        ("captions", captions(quality)),
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
        f"| {row['low']:.1%}–{row['high']:.1%} | {blind} | {row['surest']:.1%} "
        f"| {row['calibration_error']:.1%} | {row['by_chance']:.1%} |"
    )


def captions(quality: Mapping[str, Any]) -> Iterator[str]:
    yield (
        "| captions | objects named | of these there | 95% interval | of those there named | captions without a mistake "
        "| calibration error |"
    )
    yield "|---|---|---|---|---|---|---|"
    for of, rows in (("scenes", quality["captions"]), ("a drawing", quality["captions of drawings"])):
        for length, row in rows.items():
            yield (
                f"| of {of}, {length} | {row['named']:,} | {row['true']:.1%} | {row['low']:.1%}–{row['high']:.1%} "
                f"| {row['recall']:.1%} | {row['whole']:.1%} | {row['calibration_error']:.1%} |"
            )


def photographs(rows: Mapping[str, Any]) -> Iterator[str]:
    """What names the thing is in bold. At the end how many do."""
    ways = ("short", "normal", "long", "What is this?")
    yield '| photograph | short | normal | "What is this?" | cat? dog? person? |'
    yield "|---|---|---|---|---|"
    for name, row in rows.items():
        texts = {**row["said"], **row["answers"]}
        answers = list(row["answers"].values())[1:]
        cells = [f"**{texts[way]}**" if row["named"][way] else texts[way] for way in ways if way != "long"]
        yield f"| {name} | {' | '.join(cells)} | {', '.join(answers)} |"
    for title, known in (("of what ImageNet has", True), ("of what it has not", False)):
        some = [row for row in rows.values() if row["in_imagenet"] == known]
        right = [f"{sum(row['named'][way] for row in some)} of {len(some)}" for way in ways if way != "long"]
        yield f"| {title} | {' | '.join(right)} | |"


if __name__ == "__main__":
    main()
