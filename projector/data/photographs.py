"""Photographs that come with well-known packages, and what each shows: what people bring, by nobody whose work was trained on.

`photographs.tsv` was written by looking at them. Some of scikit-image's took part in choices between models (docs/mini.md: the
cat, the coffee, the rocket, the astronaut, the moon and the gravel); the others in none.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

TABLE = Path(__file__).with_name("photographs.tsv")


@dataclass(frozen=True)
class Photograph:
    """One picture file of a package, and every noun that names what it is of."""

    path: Path
    names: tuple[str, ...]
    in_imagenet: bool  # whether one of its thousand classes is of this thing


def photographs(root: Path) -> list[Photograph]:
    """Those of the table, in the packages that `vision-lm data build` unpacked under `root`."""
    with TABLE.open(encoding="utf-8", newline="") as file:
        return [
            Photograph(
                path=root / "packages" / row["package"] / row["file"],
                names=tuple(row["names"].split("|")),
                in_imagenet=row["in_imagenet"] == "yes",
            )
            for row in csv.DictReader(file, delimiter="\t")
        ]
