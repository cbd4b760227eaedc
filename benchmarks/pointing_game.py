"""The pointing game: how often the maximum of `vlm.explain`'s map falls in the box of the thing that is asked about.

    python benchmarks/pointing_game.py [--model mini] [--scenes 100] [--seed 1000000] [--grid N] [--reach R ..]

After Zhang et al. 2016 (arXiv 1608.00507). Each scene is drawn anew from its own seed, holds two to six shapes, and is
asked for the colour of one and the shape of another, where words single them out. No training or held-out file has
these seeds. A hit is a maximum inside the thing's box, without any margin; only right answers are counted, since a map
of a wrong answer has no right place. Beside it stands what chance gives: the box's share of the picture. Several
`--reach` make as many maps of the same windows, to choose from on seeds that are then not reported; beside their hits
stands how much of a map lies in the box, on average.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

import vision_lm
from projector.data.scene_references import references
from projector.data.scenes import Thing, compose
from vision_lm.evaluate.bootstrap import rate
from vision_lm.explain import GRID, REACH, Explanation

MOST = 6  # things of a scene
BAR = 0.85


@dataclass(frozen=True)
class Round:
    """One question of the game."""

    seed: int
    image: Image.Image
    thing: Thing
    question: str
    answer: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--model", default="mini", help="embedded name, folder or hub id (default: %(default)s)"
    )
    parser.add_argument("--scenes", type=int, default=100)
    parser.add_argument(
        "--seed", type=int, default=1_000_000, help="of the first scene (default: %(default)s)"
    )
    parser.add_argument("--grid", type=int, default=GRID, help="cells a side (default: %(default)s)")
    parser.add_argument(
        "--reach", type=float, nargs="+", default=[REACH], help="of a window, in cells (default: %(default)s)"
    )
    given = parser.parse_args()
    vlm = vision_lm.load(given.model)
    hits: dict[float, list[bool]] = {reach: [] for reach in given.reach}
    within: dict[float, list[float]] = {reach: [] for reach in given.reach}
    scenes: list[str] = []
    chance: list[float] = []
    wrong = 0
    for one in rounds(given.seed, given.scenes):
        if str(vlm.ask(one.image, one.question)) != one.answer:
            wrong += 1
            continue
        found = vlm.explain(one.image, one.question, grid=given.grid)
        for reach in given.reach:
            reached = replace(found, reach=reach)
            hits[reach].append(points_at(reached, one.thing))
            within[reach].append(inside(reached, one.thing))
        scenes.append(str(one.seed))
        chance.append(share(one))
        hit = " ".join("hit " if hits[reach][-1] else "miss" for reach in given.reach)
        print(f"{one.seed} {hit} {one.question} {one.answer}", flush=True)
    for reach in given.reach:
        score = rate(hits[reach], scenes)
        print(
            f"reach {reach:g}: {score.value:.1%} of {score.items} maxima in the asked thing's box (95% interval {score.low:.1%} "
            f"to {score.high:.1%}; chance {np.mean(chance):.1%}; bar {BAR:.0%}), {np.mean(within[reach]):.1%} of the maps; "
            f"{wrong} answered wrongly and left out"
        )


def rounds(first: int, scenes: int) -> Iterator[Round]:
    """Two questions a scene, about different things where there are such."""
    for seed in range(first, first + scenes):
        rng = random.Random(seed)
        while True:
            scene, image = compose(rng, max_things=MOST, held_out_pairs="avoid")
            if len(scene.things) > 1 and scene.word is None:
                break
        asked: list[Thing] = []
        for hidden in ("colour", "noun"):
            named = [
                (thing, references(thing, scene, (hidden,))) for thing in scene.things if thing not in asked
            ]
            fits = [(thing, phrases[0]) for thing, phrases in named if phrases]
            if fits:
                thing, phrase = rng.choice(fits)
                asked.append(thing)
                answer = (thing.colour or "") if hidden == "colour" else thing.noun
                yield Round(
                    seed,
                    image,
                    thing,
                    f"What {'colour' if hidden == 'colour' else 'shape'} is the {phrase}?",
                    answer,
                )


def points_at(found: Explanation, thing: Thing) -> bool:
    """Whether the map's largest pixel lies in the thing's box."""
    down, across = np.unravel_index(found.map.argmax(), found.map.shape)
    left, top, right, bottom = thing.box
    return bool(left <= across <= right and top <= down <= bottom)


def inside(found: Explanation, thing: Thing) -> float:
    """How much of the map lies in the thing's box."""
    left, top, right, bottom = (round(side) for side in thing.box)
    return float(found.map[top : bottom + 1, left : right + 1].sum() / max(found.map.sum(), 1e-9))


def share(one: Round) -> float:
    left, top, right, bottom = one.thing.box
    return (right - left) * (bottom - top) / (one.image.width * one.image.height)


if __name__ == "__main__":
    main()
