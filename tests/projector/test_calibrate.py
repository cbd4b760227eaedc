"""Calibration: the fit recovers a known distortion, and the error it lowers is the published one."""

import numpy as np
import pytest

from projector.calibrate import apply, calibration_error, fit
from vision_lm.answer import confidence
from vision_lm.config import Calibration, PlattScaling


def test_fit_recovers_known_distortions() -> None:
    """Answers right with a probability that is a known Platt curve of the reported one give that curve back.

    Those that point have another curve than those that do not, and three places the same as more.
    """
    noise = np.random.default_rng(0)
    reported, places = noise.uniform(0.3, 0.999, 160_000), noise.integers(0, 6, 160_000)
    curves = (
        PlattScaling(0.6, -0.4),
        PlattScaling(1.4, 0.2),
        PlattScaling(0.9, -0.1),
        PlattScaling(0.5, 0.3),
    )
    known = Calibration(curves[0].scale, curves[0].shift, pointing=curves[1:])
    right = noise.random(160_000) < apply(known, reported, places)
    fitted = fit(reported, right, places)
    assert len(fitted.pointing) == 3
    for found, true in zip((fitted, *fitted.pointing), curves, strict=True):
        assert found.scale == pytest.approx(true.scale, abs=0.06)
        assert found.shift == pytest.approx(true.shift, abs=0.08)
    nowhere = places == 0
    assert calibration_error(reported[nowhere], right[nowhere]) > 0.1
    assert calibration_error(apply(fitted, reported, places), right) < 0.01


def test_the_fit_is_what_answers_use() -> None:
    """The numpy curve that is fitted is the one that `Answer.confidence` applies."""
    curve = Calibration(0.7, 0.3, pointing=(PlattScaling(1.2, -0.2), PlattScaling(0.5, 0.1)))
    for p in (0.01, 0.5, 0.97):
        for places in range(4):
            expected = apply(curve, np.array([p]), np.array([places]))[0]
            found = confidence([np.log(p), 0.0], curve, points=[0.0] * places)
            assert found == pytest.approx(float(expected), rel=1e-9)


def test_without_answers_that_point_there_is_one_curve() -> None:
    """A checkpoint whose answers never point is calibrated as before."""
    noise = np.random.default_rng(1)
    reported = noise.uniform(0.3, 0.999, 2_000)
    assert fit(reported, noise.random(2_000) < reported, np.zeros(2_000, int)).pointing == ()
