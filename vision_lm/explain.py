"""Where in a picture an answer comes from: how likely the answer stays without a part, and how likely by a part alone.

A window slides over the picture (occlusion: Zeiler and Fergus 2014, arXiv 1311.2901), twice: once it is painted over in
the picture's mean colour, and once all but it is. Hiding alone misses what is there twice, and half of a red circle is
still red; showing alone misses what needs the whole view. The mean of the two is the Shapley value's first and last
term, what a part adds to nothing and what it adds to all the rest. The map at a point is the mean of the windows around
it, the nearer the more, so that its maximum is not bound to the windows' places (benchmarks/pointing_game.py). On
drawn scenes of two things, asked about the colour of one, hiding put as little as a fifth of the map on that thing, and
showing 70% and more (tests/test_explain.py).

It needs no gradients and no look inside the model, so it holds for every tower, decoder and precision. Attention
maps say less: the image tokens have already seen the whole picture, and attention to one says little about its place.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vision_lm.answer import Answer
from vision_lm.config import VisionConfig
from vision_lm.engine import Prompt
from vision_lm.errors import RequestError
from vision_lm.pictures import FittedPicture, Picture, Pictures
from vision_lm.prompts import Turn

if TYPE_CHECKING:
    from vision_lm.answerer import Answerer, Task

GRID = 6  # cells a side, unless told otherwise: 2 (6 + 1)^2 + 2 = 100 times the model's work for one answer
MAX_GRID = 16
REACH = 0.7  # cells: how far from its middle a window still says much (standard deviation)
MAX_ANSWER_CHARACTERS = 1_000
AT_ONCE = 16  # variants of the picture under way: others' requests get their turn between them
FAINTEST = (
    0.2  # an overlay's full colour is the map's maximum, but never less: noise must not look like a finding
)
TINT = (235, 45, 20)
DIMMED = 0.45  # brightness of what does not matter

Floats = NDArray[np.float32]
Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels of the picture


@dataclass(frozen=True, eq=False)
class Explanation:
    """How much an answer depends on each part of one picture."""

    answer: Answer  # the one that is explained
    image: Image.Image  # the picture, upright RGB
    # (G + 1, G + 1), -1 to 1: the share of the answer's probability (the geometric mean over its tokens) that each window
    # brings, two cells a side; below 0 where it speaks against the answer.
    windows: Floats
    box: Box  # where the cells lie: what of the picture the model sees
    reach: float = REACH  # of a window, for the map

    @property
    def cells(self) -> Floats:
        """(G, G): the same for each cell, in its middle."""
        grid = len(self.windows) - 1
        middles = np.arange(grid) + 0.5
        return _between(self.windows, middles, middles, self.reach)

    @property
    def map(self) -> Floats:
        """(H, W) of the picture, 0 to 1: `cells` where they speak for the answer, smoothly; 0 where nothing is seen."""
        return self._map(self.image.size)

    @property
    def strongest(self) -> float:
        """The largest value of `cells`, at least 0: near 0 the answer does not come from any one place."""
        return max(float(self.cells.max()), 0.0)

    @property
    def decisive(self) -> bool:
        """Whether some part of the picture brings a tenth of the answer's probability."""
        return float(self.windows.max()) >= FAINTEST / 2

    def overlay(self, longest_side: int = 1024) -> Image.Image:
        """The picture, no larger than this, darkened where it does not matter and tinted where it does."""
        image = self.image.copy()
        image.thumbnail((longest_side, longest_side))
        weight = (self._map(image.size) / max(self.strongest, FAINTEST))[..., None]  # (H, W, 1)
        pixels = np.asarray(image, dtype=np.float32)  # (H, W, 3)
        tinted = 0.6 * pixels + 0.4 * np.array(TINT, dtype=np.float32)
        mixed = (1 - weight) * DIMMED * pixels + weight * tinted
        return Image.fromarray(mixed.round().clip(0, 255).astype(np.uint8))

    def __str__(self) -> str:
        """In words, for those who cannot see the overlay."""
        if not self.decisive:
            return f"“{self.answer.text}” does not come from any one part of the picture."
        down, across = (
            float(one) / size for one, size in zip(self._peak, self.image.size[::-1], strict=True)
        )
        return f"“{self.answer.text}” comes mostly from the {_place(down, across)} of the picture."

    @property
    def _peak(self) -> tuple[float, float]:
        """The middle of the strongest cell: down, across, in pixels."""
        row, column = np.unravel_index(self.cells.argmax(), self.cells.shape)
        left, top, right, bottom = self.box
        grid = len(self.cells)
        return top + (row + 0.5) * (bottom - top) / grid, left + (column + 0.5) * (right - left) / grid

    def _map(self, size: tuple[int, int]) -> Floats:
        """`map`, at another size (W, H) of the same picture."""
        grid = len(self.windows) - 1
        left, top, right, bottom = self.box
        across, down = (
            (np.arange(count) + 0.5) * (whole / count)
            for count, whole in zip(size, self.image.size, strict=True)
        )  # (W,) and (H,): the middles of its pixels, in pixels of the picture
        across, down = (
            (across - left) / (right - left) * grid,
            (down - top) / (bottom - top) * grid,
        )  # in cells
        seen = np.outer((down >= 0) & (down <= grid), (across >= 0) & (across <= grid))
        return np.where(seen, _between(self.windows, down, across, self.reach).clip(0, 1), np.float32(0))


def explain(
    vlm: Answerer,
    turns: Sequence[Turn],
    picture: int,
    answer: str | None,
    grid: int,
    own: Task,
    go_on: Callable[[], object] = lambda: None,
) -> Explanation:
    """Explain the answer to a conversation in one of its pictures, counted from 0.

    `answer`: the text to explain; None for the model's own, written by the task `own`; `grid`: cells a side, G;
    `go_on` is called now and then, and may raise to give up. Raises RequestError and ImageError.
    """
    prompt = vlm.prompts.build(turns)
    check(answer, grid, picture, len(prompt.images))
    if vlm.config.vision.crops is not None and vlm.config.vision.crops.kind == "overlap":
        raise RequestError(
            f"{vlm.config.name} sees a picture in parts that overlap, which no window hides alone; explain with a model "
            "that sees it in one piece"
        )
    turns = [replace(turn, images=tuple(map(vlm.open_image, turn.images))) for turn in turns]
    images = [image for turn in turns for image in turn.images]
    pictures = Pictures(vlm.config.vision)
    opened = [pictures.open(image) for image in images]
    if answer is None:
        said = vlm.submit(turns, own, pictures).answer()
        if not said.text:
            raise RequestError(
                "the model's answer is empty; give an answer to explain, or ask something else"
            )
        forced = vlm.given_task(said.tokens)
    else:
        forced = vlm.given_task(vlm.prompts.answer_ids(answer)[:-1])  # all but the token that ends it
        said = vlm.submit(turns, forced, pictures).answer()
    explained = opened[picture]
    assert isinstance(explained, FittedPicture)  # not one that is encoded already: it was opened here
    likely: list[float] = []  # the probability of each variant
    variants = _variants(explained.ready(vlm.config.vision), grid)
    while some := list(islice(variants, AT_ONCE)):
        go_on()
        prompts = [Prompt(prompt.ids, [*opened[:picture], one, *opened[picture + 1 :]]) for one in some]
        likely += [math.exp(fmean(one.logprobs)) for one in vlm.engine.generate(prompts, forced.sampling)]
    box = seen_box(images[picture].size, vlm.config.vision)
    return Explanation(said, images[picture], _brought(grid, likely), box)


def seen_box(size: tuple[int, int], config: VisionConfig) -> Box:
    """What of a picture (W, H) the encoder's square shows; with "pad" the square reaches beyond the picture."""
    width, height = size
    if config.resize == "squash":
        return 0, 0, width, height
    side = min(size) if config.resize.startswith("crop") else max(size)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def check(answer: Any, grid: Any, picture: Any, pictures: int) -> None:
    """Whether so many pictures can be asked for this explanation. Raises RequestError."""
    if not pictures:
        raise RequestError("there is no picture; explain an answer about at least one")
    if isinstance(picture, bool) or not isinstance(picture, int) or not 0 <= picture < pictures:
        raise RequestError(
            f"picture is {str(picture)[:40]!r}; give 0 to {pictures - 1}: the pictures are counted from 0"
        )
    if isinstance(grid, bool) or not isinstance(grid, int) or not 2 <= grid <= MAX_GRID:
        raise RequestError(
            f"grid is {str(grid)[:40]!r}; give a whole number of cells a side, 2 to {MAX_GRID}"
        )
    if answer is not None and not (
        isinstance(answer, str) and answer.strip() and len(answer) <= MAX_ANSWER_CHARACTERS
    ):
        raise RequestError(
            f"answer is {str(answer)[:40]!r}; give a text of 1 to {MAX_ANSWER_CHARACTERS:,} characters, "
            "or None for the model's own"
        )


def _windows(grid: int) -> list[tuple[slice, slice]]:
    """Rows and columns, in cells, of every window: two cells a side, one cell apart, beginning half outside.

    So each cell lies under four of them.
    """
    sides = [slice(max(first, 0), first + 2) for first in range(-1, grid)]
    return [(rows, columns) for rows in sides for columns in sides]


def _variants(picture: Picture, grid: int) -> Iterator[Picture]:
    """The whole picture and nothing of it; then each window hidden and alone. One by one: together they may be large."""
    down, across = (
        [round(size * number / grid) for number in range(grid + 1)] for size in picture.pixels.shape[1:]
    )
    nothing = blank(picture)
    mean = nothing.pixels[:, :1, :1]  # (3, 1, 1)
    yield picture
    yield nothing
    for rows, columns in _windows(grid):
        seen = (
            slice(None),
            *(
                slice(edges[one.start], edges[min(one.stop, grid)])
                for edges, one in ((down, rows), (across, columns))
            ),
        )
        hidden, alone = picture.pixels.clone(), nothing.pixels.clone()
        hidden[seen], alone[seen] = mean, picture.pixels[seen]
        yield _variant(picture, hidden, f"without {seen}")
        yield _variant(picture, alone, f"only {seen}")


def blank(picture: Picture) -> Picture:
    """Nothing of a picture: its mean colour all over."""
    mean = picture.pixels.mean((1, 2), keepdim=True)  # (3, 1, 1)
    return _variant(picture, mean.expand_as(picture.pixels).clone(), "nothing")


def _variant(picture: Picture, pixels: Tensor, name: str) -> Picture:
    """Named after the picture, so that a variant is not encoded again for the next question."""
    digest = hashlib.blake2b(name.encode(), key=picture.digest, digest_size=len(picture.digest))
    return Picture(pixels, digest.digest())


def _brought(grid: int, likely: Sequence[float]) -> Floats:
    """The (G + 1, G + 1) windows of an explanation, from the answer's probability with each variant."""
    whole, nothing, *rest = likely
    hidden, alone = np.array(rest[::2]), np.array(rest[1::2])  # ((G + 1)^2,)
    brought = np.clip((whole - hidden) / whole, -1, 1) + np.clip((alone - nothing) / whole, -1, 1)
    return (brought / 2).reshape(grid + 1, grid + 1).astype(np.float32)


def _between(windows: Floats, down: NDArray[Any], across: NDArray[Any], reach: float) -> Floats:
    """The windows' values around points `down` (H,) by `across` (W,), in cells, weighted by a Gaussian: (H, W).

    The weights of a whole grid of windows sum to 1; beyond the picture there are none, which bring nothing.
    """
    grid = len(windows) - 1
    middles = np.array([(max(n - 1, 0) + min(n + 1, grid)) / 2 for n in range(grid + 1)])  # of what is inside
    rows, columns = (
        np.exp(-(((points[:, None] - middles) / reach) ** 2) / 2) / (math.sqrt(2 * math.pi) * reach)
        for points in (down, across)
    )  # (H, G + 1) and (W, G + 1)
    return (rows @ windows @ columns.T).astype(np.float32)


def _place(down: float, across: float) -> str:
    """A point, 0 to 1 from the top and from the left, in words."""
    vertical = ("top", "middle", "bottom")[min(int(3 * down), 2)]
    horizontal = ("left", "middle", "right")[min(int(3 * across), 2)]
    if vertical == horizontal:
        return "middle"
    return " ".join(word for word in (vertical, horizontal) if word != "middle") + " part"
