"""How sure an answer is, from the probabilities of its tokens.

Of a phrase ("two red stars") every token must be right. A caption can be worded in many ways, of which none need be likely,
but what it names must be there: it is as sure as the least sure thing in it. All is then Platt-scaled (Platt 1999), by
curves that are fitted on held-out questions and captions (`projector.calibrate`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from vision_lm.config import Calibration, PlattScaling
from vision_lm.noun_phrases import noun_phrases, overlapping

UNANSWERABLE = "unanswerable"  # what a model answers to a question about what is not there
POINT_SHARE = 0.1  # of a point's contest, in an answer's confidence


@dataclass(frozen=True)
class Sureness:
    """How sure the tokens of an answer are, in the order they are said: see `sureness`."""

    values: tuple[float, ...]  # logarithms, 0 at most
    pointing: tuple[bool, ...]  # whether a token points at a place

    @property
    def words(self) -> list[float]:
        return [value for value, pointing in zip(self.values, self.pointing, strict=True) if not pointing]


def contest(logprob: float, rival: float) -> float:
    """The logarithm of a token's share of its own probability and its likeliest rival's: log 1/2 for a tie, 0 for none.

    What is left for all the others says more of how many words there are than of whether this one is right.
    """
    ahead = logprob - rival
    return -math.log1p(math.exp(-ahead)) if ahead > 0 else ahead - math.log1p(math.exp(ahead))


def sureness(logprob: float, rival: float, *, pointing: bool = False) -> float:
    """The logarithm of how sure one token is, 0 at most: between its contest and its probability, which tell different things.

    Of a token that points a tenth of its contest: its rival is mostly the cell beside it, which would be as right. Both
    were chosen by likelihood on mini's calibration questions (docs/mini.md).
    """
    if pointing:
        return POINT_SHARE * contest(logprob, rival)
    return (contest(logprob, rival) + logprob) / 2


def of_answer(text: str, sure: Sureness, calibration: Calibration) -> float:
    """0 to 1: that an answer to a question is right; 0 for one without words.

    A phrase is scored by the product over its words' tokens, for all must be right; text that ends as a sentence does by
    their geometric mean.
    """
    words = sure.words
    if not words:
        return 0.0
    places, points = len(sure.values) - len(words), sum(sure.values) - sum(words)
    whole = text.endswith((".", "!", "?"))
    said = sum(words) / len(words) if whole else sum(words)
    curve = calibration.none if text == UNANSWERABLE else None
    return scaled(said + points, curve or calibration.scaling(len(words), places))


def of_caption(
    text: str, sure: Sureness, spans: Sequence[tuple[int, int]], calibration: Calibration
) -> float:
    """0 to 1: that everything a caption names is there; 0 for one without words.

    spans: where each token's characters begin and end. A caption that names nothing is as sure as its words' geometric mean.
    """
    if not sure.words:
        return 0.0
    # With the article before it: "an" already decides between an oil rig and a rocket.
    things = [
        sum(sure.values[n] for n in overlapping(spans, thing.begin, thing.end) if not sure.pointing[n])
        for thing in noun_phrases(text)
    ]
    least = min(things, default=sum(sure.words) / len(sure.words))
    curves = calibration.caption or (calibration,)
    return scaled(least, curves[min(max(len(things), 1), len(curves)) - 1])


def scaled(log_probability: float, curve: PlattScaling) -> float:
    """A probability, given as its logarithm, on Platt's curve."""
    probability = min(max(math.exp(log_probability), 1e-6), 1 - 1e-6)  # where the logit is finite
    logit = math.log(probability) - math.log1p(-probability)
    at = curve.scale * logit + curve.shift
    # Each side takes exp of what is not positive, which cannot overflow.
    return 1 / (1 + math.exp(-at)) if at >= 0 else math.exp(at) / (1 + math.exp(at))
