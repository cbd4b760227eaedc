"""How much a confidence is worth: calibration, and accuracy when the least sure answers are held back.

Selective prediction: El-Yaniv and Wiener 2010, Geifman and El-Yaniv 2017 (arXiv 1705.08500); expected calibration error:
Guo et al. 2017 (arXiv 1706.04599).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vision_lm.evaluate.bootstrap import HIGH, LOW, Score

BINS = 15  # of equal width, of confidence
COVERAGE = 0.8  # share of the answers that are given, for the score of that name


@dataclass(frozen=True)
class RiskCoverage:
    """What share of the answers is wrong when only the surest are given. Equal confidences come together."""

    thresholds: np.ndarray  # (K,) falling: answers at least so sure are given
    coverage: np.ndarray  # (K,) rising to 1: their share of all
    risk: np.ndarray  # (K,) the share of them that is wrong

    def threshold(self, risk: float) -> float:
        """The confidence from which on as many answers are given as can be with at most so large a share wrong.

        0 where all may be given, 1 where none may.
        """
        (fine,) = np.nonzero(self.risk <= risk)
        if not len(fine):
            return 1.0
        return 0.0 if fine[-1] == len(self.risk) - 1 else float(self.thresholds[fine[-1]])


def risk_coverage(confidences: np.ndarray, right: np.ndarray) -> RiskCoverage:
    """Of confidences (M,), 0 to 1, and how right each answer is (M,), 0 to 1."""
    order = np.argsort(-confidences, kind="stable")
    sure = confidences[order]
    ends = np.append(np.nonzero(np.diff(sure))[0], len(sure) - 1)  # the last of each group of equals
    given = ends + 1
    return RiskCoverage(sure[ends], given / len(sure), 1 - np.cumsum(right[order])[ends] / given)


def calibration_error(confidences: np.ndarray, right: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Expected calibration error: how far the mean confidence of a bin is from its share of right answers, on average."""
    times = np.ones(len(confidences)) if weights is None else weights
    places = np.minimum((confidences * BINS).astype(int), BINS - 1)
    gaps = np.bincount(places, weights=times * (confidences - right), minlength=BINS)
    return float(np.abs(gaps).sum() / times.sum())


def calibration_error_by_chance(confidences: np.ndarray, draws: int = 200) -> float:
    """What `calibration_error` comes to on average where every confidence (M,) is exactly the chance of being right.

    Few answers to a bin are never right in just that share: below this an error tells nothing (Kumar et al. 2019,
    arXiv 1909.10155). By simulation, the same every time.
    """
    chance = np.random.default_rng(0)
    return float(
        np.mean(
            [
                calibration_error(confidences, chance.random(len(confidences)) < confidences)
                for _ in range(draws)
            ]
        )
    )


def accuracy_of_the_surest(confidences: np.ndarray, right: np.ndarray) -> float:
    """How right (M,) the surest answers are, the share COVERAGE of them, by their confidences (M,)."""
    order = np.argsort(-confidences, kind="stable")
    return _of_the_surest(np.arange(1, len(order) + 1), np.cumsum(right[order]))


def selective_scores(
    confidences: np.ndarray,
    right: np.ndarray,
    unanswerable: np.ndarray | None,
    pictures: Sequence[str],
    seed: int,
    resamples: int,
) -> dict[str, Score]:
    """Scores with bootstrap intervals over pictures. `unanswerable` (M,): what the model itself holds back, if known."""
    order = np.argsort(-confidences, kind="stable")
    confidences, right = confidences[order], right[order]
    held = None if unanswerable is None else unanswerable[order].astype(float)
    places: dict[str, int] = {}
    rows = np.array([places.setdefault(pictures[one], len(places)) for one in order])
    values = _scores(confidences, right, held, np.ones(len(rows)))
    generator = np.random.default_rng(seed)
    drawn: dict[str, list[float]] = {name: [] for name in values}
    for _ in range(resamples):
        times = np.bincount(generator.integers(0, len(places), len(places)), minlength=len(places))
        for name, value in _scores(confidences, right, held, times[rows].astype(float)).items():
            drawn[name].append(value)
    found = {}
    for name, value in values.items():
        low, high = np.percentile(drawn[name], [LOW, HIGH])
        found[name] = Score(value, float(low), float(high), len(rows))
    return found


def _scores(
    confidences: np.ndarray, right: np.ndarray, held: np.ndarray | None, times: np.ndarray
) -> dict[str, float]:
    """Of answers in the order of falling confidence, each counted so many `times`."""
    given, hits = np.cumsum(times), np.cumsum(times * right)
    risk = 1 - np.divide(hits, given, out=np.ones_like(hits), where=given > 0)
    found = {
        "calibration error": calibration_error(confidences, right, times),
        f"accuracy at {COVERAGE:.0%} coverage": _of_the_surest(given, hits),
        "area under risk-coverage": float((times * risk).sum() / given[-1]),
    }
    if held is not None:
        kept = times * (1 - held)
        found["unanswerable"] = float((times * held).sum() / given[-1])
        found["accuracy of the others"] = float((kept * right).sum() / max(kept.sum(), 1e-9))
    return found


def _of_the_surest(given: np.ndarray, hits: np.ndarray) -> float:
    """given, hits: (M,) how many answers there are down to each, and how many of them are right."""
    last = int(np.searchsorted(given, COVERAGE * given[-1]))
    return float(hits[last] / given[last])
