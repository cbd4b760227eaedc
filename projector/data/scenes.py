"""Synthetic scenes: unlimited pictures about which everything is known.

`compose` draws a scene; `questions`, `dialogue` and `caption` say true things about it. Nothing here reads a
clock or a global: the same `random.Random` state gives the same scene, pixel for pixel.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from PIL import Image

from projector.data import scene_drawing as drawing
from projector.data.scene_absent import absent
from projector.data.scene_captions import caption, left_unnamed
from projector.data.scene_dialogue import dialogue
from projector.data.scene_grammar import plural
from projector.data.scene_palette import ground_shade, shade_of
from projector.data.scene_questions import naming, questions, reasoning
from projector.data.scene_shapes import Point, outline
from projector.data.scene_vocabulary import (
    BACKGROUNDS,
    EASY_VQA_BACKGROUND,
    EASY_VQA_COLOURS,
    EASY_VQA_SHAPES,
    HELD_OUT_PAIRS,
    SHAPES,
    SIZES,
    WORDS,
    Scene,
    Sprite,
    Thing,
    colours_on,
    materials_of,
)
from vision_lm.errors import TrainingError

__all__ = [
    "HELD_OUT_PAIRS",
    "Scene",
    "Sprite",
    "Thing",
    "absent",
    "caption",
    "compose",
    "dialogue",
    "left_unnamed",
    "naming",
    "questions",
    "reasoning",
]

HeldOut = Literal["avoid", "require", "ignore"]
Box = tuple[float, float, float, float]  # pixels: x0, y0, x1, y1
MOST_THINGS = 8  # more would not fit at sizes that can be recognised
_CROWD = 6  # more things than these are drawn smaller, and scenes of more are rarer

# The longer side of a thing as a part of the picture's side. Any small thing is smaller than any large one beside it.
_SHAPE_SIDE = {"small": (0.16, 0.22), "large": (0.34, 0.44)}
_SPRITE_SIDE = {"small": (0.24, 0.28), "large": (0.36, 0.46)}
_EASY_VQA_SIDE = {"small": (9, 15), "large": (21, 34)}  # of 64 pixels
_GAP = 0.02  # between things, and to the border
_SHAPE_WORDS = frozenset(SHAPES) | {plural(shape) for shape in SHAPES}
_EASY_VQA_SHARE, _WORD_SHARE = 0.1, 0.12


@dataclass(frozen=True)
class _Choice:
    """One thing before it has a place: a pair of colour and shape, or a sprite."""

    noun: str
    colour: str | None
    material: str | None
    sprite: Sprite | None


def compose(
    rng: random.Random,
    *,
    size: int = 256,
    sprites: Sequence[Sprite] = (),
    held_out_pairs: HeldOut = "avoid",
    max_things: int = MOST_THINGS,
) -> tuple[Scene, Image.Image]:
    """Draw one scene of 1 to `max_things` things on a picture `size` pixels wide and high.

    With `sprites`, about half of the things are cut-outs; a sprite whose name contains the name of a shape
    ("red heart") is left aside, as it would make the questions about shapes ambiguous. `held_out_pairs`
    says whether the pairs of HELD_OUT_PAIRS are never drawn, are the only ones drawn, or do not matter.
    Raises TrainingError for a `max_things` that does not fit the picture.
    """
    if not 1 <= max_things <= MOST_THINGS:
        raise TrainingError(f"max_things is {max_things}; a scene holds 1 to {MOST_THINGS} things")
    if held_out_pairs != "require" and rng.random() < _EASY_VQA_SHARE:
        return _easy_vqa_like(rng, size)
    ground = rng.choice([name for name in BACKGROUNDS if name != EASY_VQA_BACKGROUND])
    picture = drawing.background(ground, rng.choice(("plain", "plain", "gradient", "noise")), size, rng)
    choices = _choose(rng, _number(rng, max_things), ground, sprites, held_out_pairs)
    word = rng.choice(WORDS) if rng.random() < _WORD_SHARE and len(choices) < 5 else None
    return _draw(rng, size, ground, picture, choices, word)


def _number(rng: random.Random, most: int) -> int:
    numbers = range(1, most + 1)
    return rng.choices(numbers, [1.0 if number <= _CROWD else 0.7 for number in numbers])[0]


def _easy_vqa_like(rng: random.Random, side: int) -> tuple[Scene, Image.Image]:
    """A single flat shape anywhere on a very pale ground, as easy-VQA draws them."""
    shape, colour, size = rng.choice(EASY_VQA_SHAPES), rng.choice(EASY_VQA_COLOURS), rng.choice(SIZES)
    width = height = rng.randint(*_EASY_VQA_SIDE[size])
    if shape == "rectangle":  # never nearly square: in our other scenes that is a square
        height = max(6, round(width / rng.uniform(1.3, 2.6)))
        if rng.random() < 0.5:
            width, height = height, width
    elif shape == "triangle":
        height = round(width * 0.87)
    x, y = rng.randint(0, 64 - width), rng.randint(0, 64 - height)
    picture = drawing.draw_easy_vqa(
        side, ground_shade(EASY_VQA_BACKGROUND, rng), shape, colour, (x, y, x + width, y + height)
    )
    scale = side / 64
    box = (x * scale, y * scale, (x + width) * scale, (y + height) * scale)
    return Scene((Thing(shape, colour, size, None, box),), EASY_VQA_BACKGROUND, None, side), picture


def _choose(
    rng: random.Random, count: int, ground: str, sprites: Sequence[Sprite], held_out: HeldOut
) -> list[_Choice]:
    """What to draw. Colours, shapes and whole things repeat often enough that counting means something."""
    pairs = _pairs(ground, held_out)
    theme = rng.choice(("free", "free", "same shape", "same colour", "few"))
    first_colour, first_shape = rng.choice(pairs)
    if theme == "same shape":
        pairs = [pair for pair in pairs if pair[1] == first_shape or rng.random() < 0.08]
    elif theme == "same colour":
        pairs = [pair for pair in pairs if pair[0] == first_colour or rng.random() < 0.08]
    elif theme == "few":
        pairs = rng.sample(pairs, min(len(pairs), rng.randint(1, 3)))
    few = [sprite for _ in range(rng.randint(1, 2)) if (sprite := _nameable(rng, sprites, []))]
    sprite_share = rng.choice((0.0, 1.0, 0.5, 0.5)) if sprites else 0.0
    patterned = rng.random() < 0.5
    choices: list[_Choice] = []
    for _ in range(count):
        sprite = None
        if rng.random() < sprite_share:
            sprite = _nameable(rng, few if theme == "few" else sprites, choices)
        if sprite:
            choices.append(_Choice(sprite.name, None, None, sprite))
        else:
            colour, shape = rng.choice(pairs)
            materials = materials_of(shape, colour) if patterned and rng.random() < 0.6 else ()
            choices.append(_Choice(shape, colour, rng.choice(materials) if materials else None, None))
    return choices


def _pairs(ground: str, held_out: HeldOut) -> list[tuple[str, str]]:
    """The (colour, shape) pairs that may be drawn on this ground, evenly."""
    pairs = [(colour, shape) for colour in colours_on(ground) for shape in SHAPES]
    if held_out == "ignore":
        return pairs
    return [pair for pair in pairs if (pair in HELD_OUT_PAIRS) == (held_out == "require")]


def _nameable(rng: random.Random, sprites: Sequence[Sprite], beside: Sequence[_Choice]) -> Sprite | None:
    """A sprite whose name cannot be mixed up with a shape's, or with another name of the scene.

    "red heart" may be taken for a shape, "cat" beside "black cat" is ambiguous; two of one name are fine.
    """
    names = {choice.noun for choice in beside if choice.sprite}
    taken = _SHAPE_WORDS | {word for name in names for word in name.split()}
    for _ in range(20 if sprites else 0):
        sprite = rng.choice(sprites)
        if sprite.name in names or not taken & set(sprite.name.lower().split()):
            return sprite
    return None


def _draw(
    rng: random.Random, side: int, ground: str, picture: Image.Image, choices: list[_Choice], word: str | None
) -> tuple[Scene, Image.Image]:
    """Give every choice a size and a place, and paint it."""
    letters = drawing.word_image(word, side * rng.uniform(0.13, 0.2), picture) if word else None
    sizes, outlines, places = _lay_out(rng, side, choices, letters.size if letters else None)
    things = []
    for choice, size, points, place in zip(choices, sizes, outlines, places, strict=False):
        if choice.sprite:
            drawing.draw_sprite(picture, choice.sprite.image, place)
        elif choice.colour:
            drawing.draw_shape(
                picture,
                points,
                place,
                colour=shade_of(choice.colour, rng),
                material=choice.material,
                hole=choice.noun == "ring",
                rng=rng,
            )
        things.append(Thing(choice.noun, choice.colour, size, choice.material, place))
    if letters:
        picture.paste(letters, (round(places[-1][0]), round(places[-1][1])), letters)
    return Scene(tuple(things), ground, word, side), picture


def _lay_out(
    rng: random.Random, side: int, choices: Sequence[_Choice], word_extent: tuple[int, int] | None
) -> tuple[list[str], list[list[Point]], list[Box]]:
    """A size class, an outline and a box for every choice, and last a box for the word if there is one.

    Where the dice find no room, they are thrown again, large things ever less likely; all small ones fit.
    """
    large_share = 0.5
    crowded = 1.0 if len(choices) <= _CROWD else 0.8
    while True:
        sizes = ["large" if rng.random() < large_share else "small" for _ in choices]
        outlines = []
        extents: list[tuple[float, float]] = []
        for choice, size in zip(choices, sizes, strict=True):
            if choice.sprite:
                points = drawing.sprite_outline(choice.sprite.image)
                longer = side * crowded * rng.uniform(*_SPRITE_SIDE[size])
            else:
                points = outline(choice.noun, rng)
                longer = side * crowded * rng.uniform(*_SHAPE_SIDE[size])
            outlines.append(points)
            extents.append((longer * max(x for x, _ in points), longer * max(y for _, y in points)))
        if word_extent:
            extents.append(word_extent)
        places = _place(rng, side, extents)
        if places:
            return sizes, outlines, places
        large_share *= 0.85


def _place(rng: random.Random, side: int, extents: Sequence[tuple[float, float]]) -> list[Box] | None:
    """A box for every extent so that none touch, the largest placed first; None when there was no room."""
    gap = side * _GAP
    placed: dict[int, Box] = {}
    for index in sorted(range(len(extents)), key=lambda i: -extents[i][0] * extents[i][1]):
        width, height = extents[index]
        for _ in range(25):
            x, y = round(rng.uniform(gap, side - gap - width)), round(rng.uniform(gap, side - gap - height))
            box = (float(x), float(y), x + width, y + height)
            if not any(_touch(box, other, gap) for other in placed.values()):
                placed[index] = box
                break
        else:
            return None
    return [placed[index] for index in range(len(extents))]


def _touch(box: Box, other: Box, gap: float) -> bool:
    return (
        box[0] < other[2] + gap
        and other[0] < box[2] + gap
        and box[1] < other[3] + gap
        and other[1] < box[3] + gap
    )
