"""What a confidence is worth: against curves drawn by hand, and against chances that are known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.evaluate.test_run import Rules, vqa_files
from vision_lm.answer import AnswerWriter
from vision_lm.config import Calibration
from vision_lm.engine import Generation
from vision_lm.evaluate.evaluation import Model, run_task
from vision_lm.evaluate.predictions import Prediction
from vision_lm.evaluate.registry import read_task
from vision_lm.evaluate.selective import (
    calibration_error,
    calibration_error_by_chance,
    risk_coverage,
    selective_scores,
)
from vision_lm.evaluate.settings import Settings


def test_the_curve_by_hand() -> None:
    """Sure 0.9 right, 0.8 wrong and right (a tie), 0.3 wrong; in any order."""
    curve = risk_coverage(np.array([0.3, 0.8, 0.9, 0.8]), np.array([0.0, 0.0, 1.0, 1.0]))
    np.testing.assert_allclose(curve.thresholds, [0.9, 0.8, 0.3])
    np.testing.assert_allclose(curve.coverage, [0.25, 0.75, 1])
    np.testing.assert_allclose(curve.risk, [0, 1 / 3, 1 / 2])
    assert [curve.threshold(risk) for risk in (0, 0.32, 0.34, 0.5)] == [0.9, 0.9, 0.8, 0]
    assert risk_coverage(np.array([0.9]), np.array([0.0])).threshold(0.1) == 1


def test_scores_of_known_chances() -> None:
    """An answer of confidence p, uniform over 0 to 1, is right with chance p: calibrated, and 0.6 right of the surest 80%.

    The mean of p from 0.2 to 1 is 0.6; the risk at coverage c is c / 2, so the area under it 1 / 4.
    """
    noise = np.random.default_rng(0)
    sure = noise.random(40_000)
    right = (noise.random(40_000) < sure).astype(float)
    pictures = [str(number) for number in range(40_000)]
    found = selective_scores(sure, right, sure < 0.5, pictures, 0, 50)
    expected = {
        "calibration error": 0.0,
        "accuracy at 80% coverage": 0.6,
        "area under risk-coverage": 0.25,
        "unanswerable": 0.5,
        "accuracy of the others": 0.75,
    }
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].value == pytest.approx(value, abs=0.012), name
        assert found[name].low < found[name].high
    standard_error = np.sqrt(0.6 * 0.4 / 32_000)
    width = found["accuracy at 80% coverage"].high - found["accuracy at 80% coverage"].low
    assert width == pytest.approx(2 * 1.96 * standard_error, rel=0.5)
    assert calibration_error(np.full(100, 0.9), np.repeat([1.0, 0.0], 50)) == pytest.approx(0.4)


def test_few_answers_have_a_calibration_error_by_chance() -> None:
    """Of n answers that are all half sure, the mean distance of the share of heads from 1/2: sqrt(1 / (2 pi n))."""
    for count in (100, 10_000):
        expected = 1 / np.sqrt(2 * np.pi * count)
        assert calibration_error_by_chance(np.full(count, 0.5), 2000) == pytest.approx(expected, rel=0.05)
    assert calibration_error_by_chance(np.ones(50)) == 0


def test_the_report_has_what_the_confidence_is_worth(tmp_path: Path) -> None:
    """Of six answers 0 and 3 are right. What the model holds back is known only where every line says so."""
    settings = Settings("vqav2", tmp_path / "out", vqa_files(tmp_path), resamples=20)
    task = read_task("vqav2", settings.files)
    run_task(settings, task, lambda: Model(Rules(), {"model": "rules"}))
    saved = json.loads((tmp_path / "out" / "scores.json").read_text())["confidence"]
    assert saved["accuracy at 80% coverage"]["value"] == pytest.approx(1 / 5) and "unanswerable" not in saved
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("<svg") == 3
    right, wrong = page.split("<h2>Right</h2>")[1].split("<h2>Wrong</h2>")
    for number in range(6):  # one card a picture, of which there are three
        assert (f"What is {number}?" in right) == (number in (0, 3))
        assert (f"What is {number}?" in wrong) == (number in (1, 2, 4))
    lines = [Prediction(str(one), "red", 0.25 + 0.1 * one, "stop", one < 3) for one in range(6)]
    file = tmp_path / "held.jsonl"
    file.write_text("\n".join(json.dumps(vars(one)) for one in lines))
    held = Settings("vqav2", tmp_path / "held", settings.files, predictions=file, resamples=20)
    found = run_task(held, task, lambda: pytest.fail("no model is needed")).seeing.confidence
    assert found["unanswerable"].value == 0.5
    assert found["accuracy of the others"].value == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("logprob", "rival", "caption", "held"),
    [(-0.3, -3.0, False, False), (-2.0, -1.0, False, True), (-2.0, -1.0, True, False)],
)
def test_an_answer_says_that_it_is_none(logprob: float, rival: float, caption: bool, held: bool) -> None:
    """A word that is less likely than another is below a threshold of 0.5; a caption has no question that could be
    unanswerable.
    """
    writer = AnswerWriter(lambda ids: "red" * len(ids), Calibration(unanswerable=0.5))
    answer = writer.whole(Generation((1,), (logprob,), "stop", rivals=(rival,)), caption=caption)
    assert answer.unanswerable is held
    probability = np.exp(logprob)
    share = probability / (probability + np.exp(rival))
    assert answer.confidence == pytest.approx(np.sqrt(probability * share))
