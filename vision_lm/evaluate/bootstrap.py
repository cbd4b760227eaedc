"""Bootstrap intervals (Efron 1979): pictures are drawn with replacement, since questions about one are not independent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vision_lm.evaluate.tasks import Measured, Scorer, mean

LOW, HIGH = 2.5, 97.5  # percentiles of a 95% interval


@dataclass(frozen=True)
class Score:
    """A metric with its 95% interval."""

    value: float
    low: float
    high: float
    items: int


def scores(
    scorer: Scorer, measured: Measured, pictures: Sequence[str], seed: int, resamples: int
) -> dict[str, Score]:
    """Every metric over all items. `pictures`: the picture of each item.

    The percentile interval of `resamples` draws by numpy's PCG64 from `seed`.
    """
    values = scorer.combine(measured.counts.sum(axis=0))
    drawn = _resampled(_by_picture(measured.counts, pictures), seed, resamples)
    spread = scorer.combine(drawn)
    found = {}
    for name, value in values.items():
        low, high = np.percentile(spread[name], [LOW, HIGH])
        found[name] = Score(float(value), float(low), float(high), len(pictures))
    return found


def rate(right: Sequence[float], pictures: Sequence[str], seed: int = 0, resamples: int = 1_000) -> Score:
    """How many are right: the mean of `right` (0 to 1), one for each of the `pictures`."""
    return ratio(right, [1.0] * len(right), pictures, seed, resamples)


def ratio(
    parts: Sequence[float],
    wholes: Sequence[float],
    pictures: Sequence[str],
    seed: int = 0,
    resamples: int = 1_000,
) -> Score:
    """What the sum of `parts` is of that of `wholes`, one of each for each of the `pictures`; 0 of nothing."""
    counts = np.stack([np.asarray(one, dtype=float) for one in (parts, wholes)], axis=1)  # (items, 2)
    drawn = mean(_resampled(_by_picture(counts, pictures), seed, resamples), 0, 1)
    low, high = np.percentile(drawn, [LOW, HIGH])
    return Score(float(mean(counts.sum(axis=0), 0, 1)), float(low), float(high), len(pictures))


def _by_picture(counts: np.ndarray, pictures: Sequence[str]) -> np.ndarray:
    """(items, K) -> (pictures, K), in the order of first mention."""
    places: dict[str, int] = {}
    rows = [places.setdefault(picture, len(places)) for picture in pictures]
    sums = np.zeros((len(places), counts.shape[1]))
    np.add.at(sums, rows, counts)
    return sums


def _resampled(rows: np.ndarray, seed: int, resamples: int) -> np.ndarray:
    """(pictures, K) -> sums (resamples, K) of as many pictures drawn with replacement."""
    generator = np.random.default_rng(seed)
    count = len(rows)
    sums = np.empty((resamples, rows.shape[1]))
    for one in range(resamples):
        times = np.bincount(generator.integers(0, count, count), minlength=count)
        sums[one] = (times[:, None] * rows).sum(axis=0)
    return sums
