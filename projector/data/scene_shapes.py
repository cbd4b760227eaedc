"""The outlines of the shapes, as polygons."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence

Point = tuple[float, float]

# How far each shape may be turned (degrees) and still keep its name: a square on its corner is a diamond.
_TURNS: Mapping[str, tuple[Sequence[int], float]] = {
    "circle": ((0,), 0), "ring": ((0,), 0), "square": ((0,), 10), "rectangle": ((0, 90), 12),
    "triangle": ((0, 0, 0, 90, 180, 270), 15), "star": ((0,), 36), "heart": ((0,), 18), "diamond": ((0,), 6),
    "hexagon": ((0,), 30), "cross": ((0,), 12), "crescent": ((0, 90, 180, 270), 45),
    "arrow": ((0, 90, 180, 270), 10),
}  # fmt: skip


def outline(shape: str, rng: random.Random) -> list[Point]:
    """The corners of the shape, turned at random, in a box from (0, 0) whose longer side is 1."""
    points = _CORNERS[shape](rng)
    quarters, freedom = _TURNS[shape]
    angle = math.radians(rng.choice(quarters) + rng.uniform(-freedom, freedom))
    cos, sin = math.cos(angle), math.sin(angle)
    points = [(x * cos - y * sin, x * sin + y * cos) for x, y in points]
    left, top = min(x for x, _ in points), min(y for _, y in points)
    longer = max(max(x for x, _ in points) - left, max(y for _, y in points) - top)
    return [((x - left) / longer, (y - top) / longer) for x, y in points]


def _regular(count: int, *radii: float) -> list[Point]:
    """Points on a circle, the first on top, their radii taken in turn."""
    turn = 2 * math.pi / count
    return [
        (radii[i % len(radii)] * math.sin(i * turn), -radii[i % len(radii)] * math.cos(i * turn))
        for i in range(count)
    ]


def _circle(rng: random.Random) -> list[Point]:
    return _regular(72, 1.0)


def _square(rng: random.Random) -> list[Point]:
    return [(-1, -1), (1, -1), (1, 1), (-1, 1)]


def _rectangle(rng: random.Random) -> list[Point]:
    half = 1 / rng.uniform(1.6, 2.6)
    return [(-1, -half), (1, -half), (1, half), (-1, half)]


def _triangle(rng: random.Random) -> list[Point]:
    return [(-1, rng.uniform(0.75, 1.0)), (1, 0.9), (rng.uniform(-0.25, 0.25), -0.9)]


def _star(rng: random.Random) -> list[Point]:
    return _regular(10, 1.0, rng.uniform(0.4, 0.46))


def _heart(rng: random.Random) -> list[Point]:
    turns = [2 * math.pi * i / 60 for i in range(60)]
    return [
        (
            16 * math.sin(t) ** 3,
            -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)),
        )
        for t in turns
    ]


def _diamond(rng: random.Random) -> list[Point]:
    half = rng.uniform(0.58, 0.72)
    return [(0, -1), (half, 0), (0, 1), (-half, 0)]


def _hexagon(rng: random.Random) -> list[Point]:
    return _regular(6, 1.0)


def _cross(rng: random.Random) -> list[Point]:
    arm = rng.uniform(0.28, 0.38)
    return [
        (-arm, -1), (arm, -1), (arm, -arm), (1, -arm), (1, arm), (arm, arm),
        (arm, 1), (-arm, 1), (-arm, arm), (-1, arm), (-1, -arm), (-arm, -arm),
    ]  # fmt: skip


def _crescent(rng: random.Random) -> list[Point]:
    """A disc less an equal disc moved to the right: the outer arc, then the inner arc back."""
    shift = rng.uniform(0.5, 0.65)
    tip = math.acos(shift / 2)  # where the two circles cross, as an angle from the right
    arc = [tip + (2 * math.pi - 2 * tip) * i / 40 for i in range(41)]
    inner_tip = math.pi - tip
    back = [-inner_tip - (2 * math.pi - 2 * inner_tip) * i / 30 for i in range(31)]
    return [(math.cos(t), math.sin(t)) for t in arc] + [(shift + math.cos(t), math.sin(t)) for t in back]


def _arrow(rng: random.Random) -> list[Point]:
    neck, shaft = rng.uniform(0.0, 0.2), rng.uniform(0.2, 0.28)
    return [(-1, -shaft), (neck, -shaft), (neck, -0.7), (1, 0), (neck, 0.7), (neck, shaft), (-1, shaft)]


_CORNERS: Mapping[str, Callable[[random.Random], list[Point]]] = {
    "circle": _circle, "ring": _circle, "square": _square, "rectangle": _rectangle, "triangle": _triangle,
    "star": _star, "heart": _heart, "diamond": _diamond, "hexagon": _hexagon, "cross": _cross,
    "crescent": _crescent, "arrow": _arrow,
}  # fmt: skip
