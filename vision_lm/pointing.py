"""Answers that point: before a word, the place in the picture of what the word is for.

Where a checkpoint's config has `prompt.points`, its answers hold tokens without text, one for each cell of a grid over the
picture: "two red stars" comes after the cells of both. To look for the next thing from where the last one was, and then to
name what is there, are two easy steps in place of a hard one; to count is to point at each thing and then to say how many
(after Shikra: Chen et al. 2023, arXiv 2306.15195; counting by pointing: Molmo, Deitke et al. 2024, arXiv 2409.17146).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from vision_lm.config import PointConfig


class Point(NamedTuple):
    """A place in the picture that an answer points at."""

    at: int  # how many characters of the answer's text come before
    x: float  # 0 (left) to 1 (right)
    y: float  # 0 (top) to 1 (bottom)


def point_token(point: Point, points: PointConfig) -> int:
    """The token of the cell that the point is in."""
    column, row = (min(int(one * points.grid), points.grid - 1) for one in (point.x, point.y))
    return points.first_token_id + row * points.grid + column


def is_point(token: int, points: PointConfig | None) -> bool:
    return points is not None and 0 <= token - points.first_token_id < points.grid**2


def points_of(
    tokens: Sequence[int], points: PointConfig | None, text: Callable[[Sequence[int]], str]
) -> Iterator[Point]:
    """The points among an answer's tokens: the middles of their cells. `text`: that of an answer's first few tokens."""
    for place, token in enumerate(tokens):
        if points is not None and is_point(token, points):
            row, column = divmod(token - points.first_token_id, points.grid)
            yield Point(len(text(tokens[:place])), (column + 0.5) / points.grid, (row + 0.5) / points.grid)
