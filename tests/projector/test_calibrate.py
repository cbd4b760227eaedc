"""Calibration: the fit recovers a known distortion, and the error it lowers is the published one."""

import numpy as np
import pytest

from projector.calibrate import apply, calibration_error, fit
from vision_lm.answer import confidence
from vision_lm.config import Calibration


def test_fit_recovers_a_known_distortion() -> None:
    """Answers right with a probability that is a known Platt curve of the reported one give that curve back."""
    noise = np.random.default_rng(0)
    reported = noise.uniform(0.3, 0.999, 40_000)
    true = apply(Calibration(scale=0.6, shift=-0.4), reported)
    right = noise.random(40_000) < true
    fitted = fit(reported, right)
    assert fitted.scale == pytest.approx(0.6, abs=0.03)
    assert fitted.shift == pytest.approx(-0.4, abs=0.05)
    assert calibration_error(reported, right) > 0.1
    assert calibration_error(apply(fitted, reported), right) < 0.015


def test_the_fit_is_what_answers_use() -> None:
    """The numpy curve that is fitted is the one that `Answer.confidence` applies."""
    curve = Calibration(scale=0.7, shift=0.3)
    for p in (0.01, 0.5, 0.97):
        assert confidence([np.log(p), 0.0], curve) == pytest.approx(
            float(apply(curve, np.array(p))), rel=1e-9
        )
