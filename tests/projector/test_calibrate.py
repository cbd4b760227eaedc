"""Calibration: the fit recovers a known distortion, and the error it lowers is the published one."""

import numpy as np
import pytest
import torch

from projector.calibrate import apply, calibration_error, fit, platt
from vision_lm.confidence import Sureness, of_answer
from vision_lm.config import Calibration, PlattScaling


def test_fit_recovers_known_distortions() -> None:
    """Answers right with a probability that is a known Platt curve of the reported one give that curve back.

    A word has another curve than a phrase, those that point have others, and three places the same as more.
    """
    noise = np.random.default_rng(0)
    count = 240_000
    reported = noise.uniform(0.3, 0.999, count)
    words, places = noise.integers(1, 4, count), noise.integers(0, 6, count)
    curves = (
        PlattScaling(0.6, -0.4),
        PlattScaling(1.4, 0.2),
        PlattScaling(0.9, -0.1),
        PlattScaling(0.5, 0.3),
    )
    known = Calibration(curves[0].scale, curves[0].shift, word=PlattScaling(1.2, 0.5), pointing=curves[1:])
    right = noise.random(count) < apply(known, reported, words, places)
    fitted = fit(reported, right, words, places)
    assert fitted.word and known.word and len(fitted.pointing) == 3
    for found, true in zip((fitted, *fitted.pointing, fitted.word), (*curves, known.word), strict=True):
        assert found.scale == pytest.approx(true.scale, abs=0.08)
        assert found.shift == pytest.approx(true.shift, abs=0.1)
    phrases = (places == 0) & (words > 1)
    assert calibration_error(reported[phrases], right[phrases]) > 0.1
    assert calibration_error(apply(fitted, reported, words, places), right) < 0.01


def test_the_fit_is_what_answers_use() -> None:
    """The numpy curve that is fitted is the one that answers apply."""
    curve = Calibration(
        0.7, 0.3, word=PlattScaling(0.9, -0.6), pointing=(PlattScaling(1.2, -0.2), PlattScaling(0.5, 0.1))
    )
    for p in (0.01, 0.5, 0.97):
        for words in (1, 2, 3):
            for places in range(4):
                expected = apply(curve, np.array([p]), np.array([words]), np.array([places]))[0]
                values = (float(np.log(p)), *[0.0] * (words - 1 + places))
                pointing = (*[False] * words, *[True] * places)
                found = of_answer("two red stars", Sureness(values, pointing), curve)
                assert found == pytest.approx(float(expected), rel=1e-9)


def test_without_answers_that_point_there_are_no_curves_for_them() -> None:
    """A checkpoint whose answers never point: one curve for a word, one for more."""
    noise = np.random.default_rng(1)
    reported, words = noise.uniform(0.3, 0.999, 2_000), noise.integers(1, 3, 2_000)
    fitted = fit(reported, noise.random(2_000) < reported, words, np.zeros(2_000, int))
    assert fitted.pointing == () and fitted.word is not None


def test_answers_that_are_nearly_all_certain_have_a_curve() -> None:
    """As "unanswerable" has where it is well learnt: the fit is the least of Platt's loss, which torch finds by LBFGS."""
    noise = np.random.default_rng(0)
    reported = np.concatenate([np.full(470, 0.9999), noise.uniform(0.3, 0.9, 20)])
    right = np.ones(490, bool)
    right[[0, 1, *range(470, 475)]] = False
    found = platt(reported, right)
    p = torch.from_numpy(reported)
    target = torch.where(torch.from_numpy(right), 484 / 485, 1 / 9).double()
    weights = torch.tensor([1.0, 0.0], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=500, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        z = weights[0] * torch.log(p / (1 - p)) + weights[1]
        found = torch.nn.functional.binary_cross_entropy_with_logits(z, target, reduction="sum")
        found.backward()
        return found

    optimizer.step(loss)
    assert (found.scale, found.shift) == pytest.approx(weights.tolist(), abs=1e-4)
