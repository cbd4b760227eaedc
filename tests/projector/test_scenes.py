"""Synthetic scenes: what they show, where, and which pairs of colour and shape they keep back."""

from __future__ import annotations

import math
import random
from collections import Counter

import numpy as np
import pytest

from projector.data.samples import QA
from projector.data.scene_vocabulary import COLOURS, SHAPES, colours_on
from projector.data.scenes import HELD_OUT_PAIRS, Scene, Sprite, caption, compose, dialogue, questions
from tests.projector.scene_oracle import plain, size_of
from tests.projector.small_scenes import NAMES, SPRITES, scenes
from vision_lm.errors import TrainingError


def test_held_out_pairs_are_never_shown_nor_named_in_training() -> None:
    """With "avoid" no picture, question or caption has a held-out pair, yet every colour and shape occurs."""
    colours: set[str | None] = set()
    nouns: set[str] = set()
    pairs = {f"{colour} {shape}" for colour, shape in HELD_OUT_PAIRS}
    for scene, rng in scenes(500):
        shapes = [thing for thing in scene.things if thing.colour]
        assert not {(thing.colour, thing.noun) for thing in shapes} & HELD_OUT_PAIRS
        colours.update(thing.colour for thing in shapes)
        nouns.update(thing.noun for thing in shapes)
        texts = [
            qa.question + " " + qa.answer for qa in questions(scene, rng, 8, NAMES) + dialogue(scene, rng)
        ]
        said = " ".join(plain(text) for text in [*texts, caption(scene, "long", rng).text])
        assert not [pair for pair in pairs if pair in said]
    assert (colours, nouns) == (set(COLOURS), set(SHAPES))


def test_required_held_out_pairs_fill_the_scene() -> None:
    """With "require" every shape is of a held-out pair, and all pairs come up."""
    shown = set()
    for seed in range(200):
        scene, _ = compose(random.Random(seed), size=64, held_out_pairs="require")
        shown |= {(thing.colour, thing.noun) for thing in scene.things}
    assert shown == HELD_OUT_PAIRS


@pytest.mark.parametrize("sprites", [(), SPRITES])
def test_same_seed_same_scene(sprites: tuple[Sprite, ...]) -> None:
    """The same seed gives the same pixels and the same words."""

    def everything(seed: int) -> tuple[Scene, bytes, list[QA], list[QA], str]:
        rng = random.Random(seed)
        scene, picture = compose(rng, size=128, sprites=sprites)
        texts = questions(scene, rng, 6, NAMES), dialogue(scene, rng), caption(scene, "long", rng).text
        return scene, picture.tobytes(), *texts

    for seed in range(40):
        assert everything(seed) == everything(seed)
    assert everything(1)[1] != everything(2)[1]


def test_counts_sizes_and_boxes_keep_their_promises() -> None:
    """1 to 8 things, more than six less often; boxes inside, apart; two separate sizes; no sprite named like a shape."""
    numbers: Counter[int] = Counter()
    for scene, _ in scenes(1200):
        numbers[len(scene.things)] += 1
        for i, thing in enumerate(scene.things):
            x0, y0, x1, y1 = thing.box
            assert -0.5 <= x0 < x1 <= scene.side + 0.5 and -0.5 <= y0 < y1 <= scene.side + 0.5
            assert size_of(thing, scene) == thing.size and thing.noun != "red heart"
            assert thing.colour is None or thing.colour in colours_on(scene.background)
            for other in scene.things[:i]:
                apart = x0 >= other.box[2] or other.box[0] >= x1 or y0 >= other.box[3] or other.box[1] >= y1
                assert apart
    assert set(numbers) == set(range(1, 9)) and min(numbers.values()) > 1200 * 0.06


def test_box_and_colour_are_those_of_the_pixels() -> None:
    """On a plain ground the pixels that differ fill the box, and their colour is nearest to the one named."""
    anchors = {
        "red": (235, 10, 20), "orange": (255, 140, 0), "yellow": (255, 235, 10), "green": (25, 160, 35),
        "teal": (5, 140, 140), "blue": (20, 70, 235), "purple": (130, 25, 180), "pink": (255, 130, 185),
        "brown": (110, 60, 25), "black": (10, 10, 10), "white": (250, 250, 250), "gray": (130, 130, 130),
    }  # fmt: skip
    checked = 0
    for seed in range(900):
        scene, picture = compose(random.Random(seed), max_things=1)
        pixels = np.asarray(picture).astype(int)  # (H, W, 3)
        thing, edge = scene.things[0], np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
        ground = np.median(edge, axis=0)
        if scene.word or thing.material or (edge != ground).any():
            continue
        checked += 1
        difference = np.abs(pixels - ground).sum(2)
        rows, columns = np.nonzero(difference > 0.4 * difference.max())
        found = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert np.abs(np.subtract(found, thing.box)).max() <= 3, (found, thing)
        colour = np.median(pixels[rows, columns], axis=0)
        reddish = np.abs(colour - (150, 40, 40)).max() < 40  # as easy-VQA's brown is
        nearest = min(anchors, key=lambda name: math.dist(anchors[name], colour))
        assert thing.colour == ("brown" if reddish else nearest), (colour, thing)
    assert checked > 250


def test_too_many_things_are_refused() -> None:
    """A number of things that cannot fit is named in the error, instead of a search without end."""
    with pytest.raises(TrainingError, match="max_things is 20"):
        compose(random.Random(0), max_things=20)
