"""Small synthetic scenes, every other one with cut-outs, and the names of these."""

from __future__ import annotations

import random

from PIL import Image

from projector.data.scenes import Scene, Sprite, compose

SPRITES = tuple(
    Sprite(name, Image.new("RGBA", (40 + 10 * i, 60), (40 * i, 90, 200, 255)))
    for i, name in enumerate(("coffee cup", "dog", "grapes", "person with hat", "orange", "red heart"))
)
NAMES = [sprite.name for sprite in SPRITES[:5]]


def scenes(count: int, first_seed: int = 0) -> list[tuple[Scene, random.Random]]:
    """Small pictures, every other one with cut-outs."""
    made = []
    for seed in range(first_seed, first_seed + count):
        rng = random.Random(seed)
        made.append((compose(rng, size=96, sprites=SPRITES if seed % 2 else ())[0], rng))
    return made
