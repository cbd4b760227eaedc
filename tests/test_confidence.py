"""How sure an answer is: of a phrase that all of it is right, of a caption that all it names is there."""

from __future__ import annotations

import math

import pytest

from vision_lm.confidence import Sureness, contest, of_answer, of_caption, sureness
from vision_lm.config import Calibration, PlattScaling


def said(*values: float, points: tuple[float, ...] = ()) -> Sureness:
    """Words, then points."""
    return Sureness((*values, *points), (False,) * len(values) + (True,) * len(points))


def test_a_token_is_as_sure_as_its_probability_and_its_lead() -> None:
    """Something between its probability and its share against its likeliest rival; of one that points a little."""
    assert math.exp(contest(math.log(0.6), math.log(0.2))) == pytest.approx(0.75)
    assert math.exp(contest(math.log(0.2), math.log(0.6))) == pytest.approx(0.25)
    assert contest(-0.5, -math.inf) == 0
    assert math.exp(2 * sureness(math.log(0.6), math.log(0.2))) == pytest.approx(0.6 * 0.75)
    assert math.exp(10 * sureness(math.log(0.6), math.log(0.2), pointing=True)) == pytest.approx(0.75)


def test_confidence_is_a_calibrated_probability() -> None:
    """Of a phrase all tokens together, of sentences their words' geometric mean. Without calibration as it is, with it
    Platt's sigmoid; always within 0 and 1.
    """
    assert of_answer("two stars", said(-0.1, -0.3), Calibration()) == pytest.approx(2.718281828**-0.4)
    assert of_answer("It is red.", said(-0.1, -0.3), Calibration()) == pytest.approx(2.718281828**-0.2)
    assert of_answer("a star", said(-0.1, -0.3, points=(-0.2,)), Calibration()) == pytest.approx(
        2.718281828**-0.6
    )
    assert of_answer("It is red.", said(-0.1, -0.3, points=(-0.2,)), Calibration()) == pytest.approx(
        2.718281828**-0.4
    )
    assert of_answer("yes", said(-0.6931472), Calibration(scale=2.0, shift=1.0)) == pytest.approx(0.7310586)
    none = Calibration(2.0, 1.0, none=PlattScaling())
    assert of_answer("unanswerable", said(-0.1, -0.3), none) == pytest.approx(2.718281828**-0.4)
    for logprobs in ([0.0], [-1e4], [-0.5] * 3, []):
        for calibration in (Calibration(), Calibration(50, -300), Calibration(50, 300)):
            assert 0 <= of_answer("two red stars", said(*logprobs), calibration) <= 1
            spans = [(n, n + 1) for n in range(len(logprobs))]
            assert 0 <= of_caption("A cat.", said(*logprobs), spans, calibration) <= 1


def test_a_caption_is_as_sure_as_its_least_sure_thing() -> None:
    """However it is worded: an unlikely beginning costs nothing, an unlikely noun or article does, wherever it stands."""
    words = ("The", " picture", " shows", " a", " cat", " and", " an", " artichoke", ".")
    ends = [len("".join(words[: n + 1])) for n in range(len(words))]
    spans = list(zip([0, *ends], ends, strict=False))
    text = "".join(words)

    def sure(*curve: PlattScaling, **unlikely: float) -> float:
        values = [unlikely.get(word.strip(), -0.01) for word in words]
        return of_caption(text, said(*values), spans, Calibration(caption=curve))

    assert sure(The=-2.0, shows=-2.0) == pytest.approx(math.exp(-0.02))
    assert sure(artichoke=-1.0) == pytest.approx(math.exp(-1.01))
    assert sure(an=-1.0, artichoke=-0.5, cat=-0.9) == pytest.approx(math.exp(-1.5))
    of_one, of_more = PlattScaling(1.0, -1.0), PlattScaling(1.0, 1.0)
    assert sure(of_one, of_more, artichoke=-1.0) > sure(artichoke=-1.0) > sure(of_one, artichoke=-1.0)
    # Tokens that point, and say nothing, are not the thing's; a caption that names nothing is as sure as its words.
    spans.insert(3, (spans[3][0], spans[3][0]))
    values, pointing = [-0.01] * 10, [False] * 10
    values[3], pointing[3] = -3.0, True
    assert of_caption(text, Sureness(tuple(values), tuple(pointing)), spans, Calibration()) == pytest.approx(
        math.exp(-0.02)
    )
    assert of_caption("It rains.", said(-0.1, -0.3), [(0, 2), (2, 9)], Calibration()) == pytest.approx(
        math.exp(-0.2)
    )
