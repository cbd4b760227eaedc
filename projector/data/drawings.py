"""A single drawing filling a picture: how it is placed, and what is asked about it."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from PIL import Image, ImageEnhance, ImageFilter

from projector.data.existence import exists
from projector.data.pictures import Picture
from projector.data.samples import QA
from projector.data.scene_grammar import with_article
from vision_lm.prompts import CaptionLength

_WHAT = (
    "What is this?",
    "What is in the picture?",
    "What is in the image?",
    "what is this",
    "What does the picture show?",
    "What do you see?",
    "What is shown here?",
    "Name the thing in the picture.",
)
_CATEGORIES = ("animal", "vehicle", "building", "tool", "plant", "person", "face")


def place(cut_out: Image.Image, size: int, rng: random.Random, *, plain: bool = False) -> Image.Image:
    """An RGBA cut-out on a ground, `size` pixels a side: centred on white, or varied as photographs of things vary."""
    if plain:
        return _paste(cut_out, Image.new("RGB", (size, size), "white"), 0.85, 0.5, 0.5)
    if rng.random() < 0.5:
        cut_out = cut_out.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if rng.random() < 0.4:
        cut_out = cut_out.rotate(rng.uniform(-20, 20), Image.Resampling.BICUBIC, expand=True)
    if rng.random() < 0.5:
        stretch = rng.uniform(0.8, 1.25)
        cut_out = cut_out.resize((max(1, round(cut_out.width * stretch)), cut_out.height))
    picture = _paste(cut_out, _ground(size, rng), rng.uniform(0.55, 1.0), rng.random(), rng.random())
    for enhance, spread in (
        (ImageEnhance.Color, 0.6),
        (ImageEnhance.Brightness, 0.25),
        (ImageEnhance.Contrast, 0.3),
    ):
        if rng.random() < 0.5:
            picture = enhance(picture).enhance(rng.uniform(1 - spread, 1 + spread))
    if rng.random() < 0.1:
        picture = picture.convert("L").convert("RGB")
    if rng.random() < 0.15:
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 1.8)))
    return picture


def turns(
    picture: Picture, others: Sequence[Picture], requests: Mapping[CaptionLength, str], rng: random.Random
) -> list[QA]:
    """What it is, whether it is this or that, and captions."""
    name = with_article(picture.name)
    true_names = {picture.name, *picture.aliases}
    found = [QA(question, name, "name") for question in rng.sample(_WHAT, 3)]
    found += [exists(name, True, rng) for name in (picture.name, rng.choice(sorted(true_names)))]
    some = rng.sample(list(others), min(60, len(others)))
    near = [other.name for other in some if other.category == picture.category]
    for wrong in rng.sample(near, min(1, len(near))) + [rng.choice(others).name]:
        if wrong not in true_names and not set(wrong.split()) & set(picture.name.split()):
            found.append(exists(wrong, False, rng))
    if picture.category in _CATEGORIES:
        found.append(QA(f"Is it {with_article(str(picture.category))}?", "yes", "group"))
        wrong = rng.choice([c for c in _CATEGORIES if c not in (picture.category, "person", "face")])
        found.append(QA(f"Is it {with_article(wrong)}?", "no", "group"))
    short, normal, long = requests["short"], requests["normal"], requests["long"]
    found.append(QA(short, f"{name[:1].upper()}{name[1:]}.", "caption"))
    found.append(QA(normal, f"A drawing of {name}.", "caption"))
    found.append(QA(long, f"A drawing of {name}. It fills most of the picture.", "caption"))
    return found


def _ground(size: int, rng: random.Random) -> Image.Image:
    draw = rng.random()
    light = tuple(rng.randint(200, 255) for _ in range(3))
    if draw < 0.35:
        return Image.new("RGB", (size, size), "white" if rng.random() < 0.5 else light)
    if draw < 0.55:
        return Image.new("RGB", (size, size), tuple(rng.randint(0, 255) for _ in range(3)))
    cells = rng.choice((2, 2, 3, 5, 9, 24))  # a coarse grid of colours, smoothed: gradients, blurs, textures
    grid = Image.frombytes("RGB", (cells, cells), rng.randbytes(cells * cells * 3))
    ground = grid.resize((size, size), Image.Resampling.BICUBIC)
    return Image.blend(ground, Image.new("RGB", (size, size), light), rng.uniform(0.0, 0.7))


def _paste(cut_out: Image.Image, ground: Image.Image, share: float, x: float, y: float) -> Image.Image:
    """Scaled so that its longer side is `share` of the picture; x and y (0-1) place it in the room that is left."""
    size = ground.width
    scale = share * size / max(cut_out.size)
    scaled = cut_out.resize((max(1, round(cut_out.width * scale)), max(1, round(cut_out.height * scale))))
    ground.paste(scaled, (round((size - scaled.width) * x), round((size - scaled.height) * y)), scaled)
    return ground
