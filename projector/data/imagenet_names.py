"""What people call the 1000 ImageNet classes: "tabby, tabby cat" is a tabby cat, a cat, an animal.

WordNet's lemmas are a zoologist's and a shopkeeper's; a caption needs the word that a person would say first
(Rosch's basic level). `imagenet_names.tsv` holds both by class index, in timm's and torchvision's order.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

TABLE = Path(__file__).with_name("imagenet_names.tsv")


@dataclass(frozen=True)
class ImageNetClass:
    """One class and its names."""

    index: int
    synset: str  # WordNet id, "n02123045"
    noun: str  # the class in everyday words: "tabby cat"
    basic: str  # the basic-level noun: "cat"
    group: str  # "animal", "food", "vehicle", …
    person_likely: bool  # its photographs nearly always show a person: a groom, a gown, a jersey


def _read() -> tuple[ImageNetClass, ...]:
    with TABLE.open(encoding="utf-8", newline="") as file:
        return tuple(
            ImageNetClass(
                index=int(row["index"]),
                synset=row["synset"],
                noun=row["noun"],
                basic=row["basic"],
                group=row["group"],
                person_likely=row["person_likely"] == "yes",
            )
            for row in csv.DictReader(file, delimiter="\t")
        )


CLASSES: tuple[ImageNetClass, ...] = _read()
