"""A task: items with a picture, a question and references, and the scorer that judges what a model says of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from vision_lm.prompts import CaptionLength

Scores = Mapping[str, np.ndarray]  # by the metric's name


@dataclass(frozen=True)
class Item:
    """One thing to be answered."""

    id: str
    image: Path
    references: tuple[str, ...]  # right answers, or an annotator's answer each, or captions
    question: str | None = None  # None: a caption is asked for
    kind: str = ""  # of question, for the scores by kind
    choices: tuple[str, ...] = ()
    before: tuple[
        tuple[str, str], ...
    ] = ()  # questions about the picture that came first, and their right answers


@dataclass(frozen=True)
class Measured:
    """What a scorer found, in a form that is resampled without being measured again."""

    counts: np.ndarray  # (items, K): what the metrics are made of, added up over items
    right: (
        np.ndarray
    )  # (items,): 0 to 1, how right each answer is; what a metric has no such number for is nan
    notes: tuple[str, ...] = ()  # what a reader must know to compare the scores


class Scorer(Protocol):
    """Judges answers. Knows no model and no file."""

    headline: str  # the metric that is also given for each kind of question; "" for none

    def measure(self, items: Sequence[Item], answers: Sequence[str]) -> Measured:
        """The counts of each item, in the items' order."""

    def combine(self, sums: np.ndarray) -> Scores:
        """Sums of counts (..., K) over items -> every metric (...). The same sums give the same bits."""


@dataclass(frozen=True)
class Task:
    """Items, how they are asked, and how the answers are judged."""

    name: str
    items: tuple[Item, ...]
    scorer: Scorer
    files: tuple[Path, ...]  # that the items came from
    blind: bool = False  # whether the baseline without the picture is a part of it
    length: CaptionLength = "normal"  # of captions
    max_tokens: int | None = None  # of an answer


def mean(sums: np.ndarray, column: int, of: int) -> np.ndarray:
    """One column of sums over another; 0 where there is nothing."""
    below = sums[..., of]
    return np.divide(sums[..., column], below, out=np.zeros(below.shape), where=below != 0)
