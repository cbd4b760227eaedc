"""Fits how sure a checkpoint may call itself, on questions that it was not trained on, and when it should rather not answer.

    python -m projector.calibrate --model build/mini --data data [--risk 0.05]

Platt scaling of the probabilities, for answers of one word, of more, and those that point at one place, at two and at more,
and for captions, which are right where all that they name is there. From the risk-coverage curve of the answers then the
confidence below which one counts as `unanswerable`: as many are given as can be with at most the share `--risk` of them wrong.

The first quarter of every held-out file is for this fit alone (`projector.data.held_out`);
`benchmarks/mini_quality.py` reports on the rest. One question of a kind and picture, so that no kind drowns the others.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import numpy as np

from projector.caption_truth import judged_captions
from projector.data.held_out import calibration_part
from projector.data.pictures import load_pictures
from projector.data.samples import QA, Sample, iter_jsonl
from vision_lm.answer import Answer
from vision_lm.checkpoint import read_checkpoint, write_checkpoint
from vision_lm.confidence import UNANSWERABLE
from vision_lm.config import Calibration, PlattScaling
from vision_lm.evaluate.answers import in_any_order
from vision_lm.evaluate.selective import calibration_error, risk_coverage
from vision_lm.model import VisionLM
from vision_lm.noun_phrases import noun_phrases

MOST = 3  # places, and things: answers that point at more, and captions that name more, share a curve
CAPTIONED = ("scenes.jsonl", "drawings.jsonl")
HELD_OUT = ("scenes.jsonl", "reasoning.jsonl", "naming.jsonl", "absent.jsonl", "drawings.jsonl")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--model", type=Path, required=True, help="the checkpoint folder; its config.json is rewritten"
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument(
        "--risk", type=float, default=0.05, help="of the answers that are given, so many may be wrong (0.05)"
    )
    arguments = parser.parse_args()
    checkpoint = read_checkpoint(arguments.model)
    plain = dataclasses.replace(
        checkpoint, config=dataclasses.replace(checkpoint.config, calibration=Calibration())
    )
    vlm = VisionLM(plain)
    asked = [
        (sample.images[0], turn)
        for name in HELD_OUT
        for sample in calibration_part(list(iter_jsonl(arguments.data / "corpus" / "held_out" / name)))
        for turn in one_of_each_kind(sample)
    ]
    replies = vlm.ask([image for image, _ in asked], [turn.question for _, turn in asked])
    answers = [reply for reply in replies if isinstance(reply, Answer)]
    probabilities = np.array([answer.confidence for answer in answers])
    right = np.array(
        [
            in_any_order(str(answer)) == in_any_order(turn.answer)
            for answer, (_, turn) in zip(answers, asked, strict=True)
        ]
    )
    places = np.array([len(answer.points) for answer in answers])
    words = np.array([len(answer.tokens) for answer in answers]) - places
    none = np.array([answer.text == UNANSWERABLE for answer in answers])
    calibration = fit(probabilities, right, words, places, none)
    scaled = apply(calibration, probabilities, words, places, none)
    threshold = risk_coverage(scaled, right).threshold(arguments.risk)
    scenes_and_drawings = [
        sample
        for name in CAPTIONED
        for sample in calibration_part(list(iter_jsonl(arguments.data / "corpus" / "held_out" / name)))
    ]
    names = {picture.name for picture in load_pictures(arguments.data)}
    captions = [one for some in judged_captions(vlm, scenes_and_drawings, names).values() for one in some]
    whole = np.array([one.true == one.named for one in captions])
    sure = np.array([one.answer.confidence for one in captions])
    named = np.array([min(max(len(noun_phrases(one.answer.text)), 1), MOST) for one in captions])
    curves = tuple(platt(sure[named == count], whole[named == count]) for count in range(1, MOST + 1))
    calibration = dataclasses.replace(calibration, unanswerable=threshold, caption=curves)
    given = scaled >= threshold
    print(
        f"{len(asked)} questions, {right.mean():.1%} right; expected calibration error "
        f"{calibration_error(probabilities, right):.1%} before, {calibration_error(scaled, right):.1%} after; "
        f"{given.mean():.1%} are at least {threshold:.1%} sure, and {right[given].mean():.1%} of them right; "
        f"{len(captions)} captions, of {whole.mean():.1%} all is there; {calibration}"
    )
    config = dataclasses.replace(checkpoint.config, calibration=calibration)
    write_checkpoint(arguments.model, config, checkpoint.tensors, checkpoint.tokenizer)


def one_of_each_kind(sample: Sample) -> list[QA]:
    """The first turn of every kind but captions, whose text has no single right form."""
    return list({turn.kind: turn for turn in reversed(sample.turns) if turn.kind != "caption"}.values())


def fit(
    probabilities: np.ndarray,
    right: np.ndarray,
    words: np.ndarray,
    places: np.ndarray,
    none: np.ndarray | None = None,
) -> Calibration:
    """Of answers (M,) the probability, whether it is right, of how many tokens it is, at how many places it points, and
    whether it says that there is none.
    """
    none = np.zeros(len(right), bool) if none is None else none

    def of(some: np.ndarray) -> PlattScaling:
        return platt(probabilities[some], right[some])

    phrase = of((places == 0) & (words != 1) & ~none)
    pointing = [of(np.minimum(places, MOST) == count) for count in range(1, min(int(places.max()), MOST) + 1)]
    return Calibration(
        phrase.scale,
        phrase.shift,
        word=of((places == 0) & (words == 1)),
        pointing=tuple(pointing),
        none=of(none) if none.any() else None,
    )


def platt(probabilities: np.ndarray, right: np.ndarray, steps: int = 50) -> PlattScaling:
    """Logistic regression of being right on the logit of the probability (Platt 1999), by Newton's method.

    probabilities, right: (M,). Platt's smoothed targets keep it finite where every answer is right. A step that overshoots,
    as where nearly all answers are as sure as can be, is halved until it does not.
    """
    p = np.clip(probabilities, 1e-6, 1 - 1e-6)
    x = np.stack([np.log(p / (1 - p)), np.ones_like(p)], axis=1)  # (M, 2)
    target = np.where(right, (right.sum() + 1) / (right.sum() + 2), 1 / ((~right).sum() + 2))

    def loss(weights: np.ndarray) -> float:
        z = x @ weights  # (M,)
        return float((np.logaddexp(0, z) - target * z).sum())

    weights = np.array([1.0, 0.0])
    for _ in range(steps):
        predicted = np.exp(-np.logaddexp(0, -x @ weights))  # (M,)
        gradient = x.T @ (predicted - target)
        curvature = (x * (predicted * (1 - predicted))[:, None]).T @ x + 1e-6 * np.eye(2)
        step = np.linalg.solve(curvature, gradient)
        while loss(weights - step) > loss(weights) and np.abs(step).max() > 1e-9:
            step = step / 2
        weights = weights - step
    return PlattScaling(scale=float(weights[0]), shift=float(weights[1]))


def apply(
    calibration: Calibration,
    probabilities: np.ndarray,
    words: np.ndarray,
    places: np.ndarray,
    none: np.ndarray | None = None,
) -> np.ndarray:
    """Calibrated confidences (M,) of raw probabilities (M,), as `vision_lm.confidence` gives them."""
    p = np.clip(probabilities, 1e-6, 1 - 1e-6)
    says_none = np.zeros(len(p), bool) if none is None else none
    scalings = [
        calibration.none if nothing and calibration.none else calibration.scaling(*form)
        for nothing, *form in zip(says_none.tolist(), words.tolist(), places.tolist(), strict=True)
    ]
    scale, shift = (np.array([getattr(one, name) for one in scalings]) for name in ("scale", "shift"))
    return 1 / (1 + np.exp(-(scale * np.log(p / (1 - p)) + shift)))


if __name__ == "__main__":
    main()
