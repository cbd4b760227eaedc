"""The easy-VQA dataset (Victor Zhou, MIT): 64×64 pictures of one coloured shape, 13 answers, official splits.

    python -m projector.data.easy_vqa        what guessing without the picture gets right

The pictures and questions are those of the package `easy-vqa`, which has them inside.
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from vision_lm.errors import DataError

Kind = Literal["colour", "shape", "existence", "absence"]
KINDS: tuple[Kind, ...] = ("colour", "shape", "existence", "absence")


class Question(NamedTuple):
    """One question about one picture."""

    image: Path
    question: str
    answer: str
    kind: Kind


class Score(NamedTuple):
    """Right answers among questions."""

    right: int
    questions: int

    @property
    def accuracy(self) -> float:
        """Between 0 and 1."""
        return self.right / self.questions


def train() -> Iterator[Question]:
    """The official train split: 38,575 questions about 4,000 pictures."""
    return _split("train")


def test() -> Iterator[Question]:
    """The official test split: 9,673 questions about 1,000 pictures."""
    return _split("test")


test.__test__ = False  # type: ignore[attr-defined]  # for pytest: a split, not a test


def kind_of(question: str) -> Kind:
    """What a question asks for, by its form: "is no red shape present?" asks about absence."""
    words = question.lower().rstrip("?").split()
    if words[0] == "what":
        return "colour" if "color" in words else "shape"
    return "absence" if "no" in words or "not" in words else "existence"


def blind_baseline(known: Sequence[Question], asked: Sequence[Question]) -> dict[str, Score]:
    """What one gets right without looking: to each question string, its most frequent answer in `known`.

    → the score of each kind, and "all". A question string that `known` lacks counts as wrong.
    """
    answers: dict[str, Counter[str]] = {}
    for one in known:
        answers.setdefault(one.question, Counter())[one.answer] += 1
    guesses = {question: counts.most_common(1)[0][0] for question, counts in answers.items()}
    asked_of: Counter[str] = Counter()
    right: Counter[str] = Counter()
    for one in asked:
        for kind in (one.kind, "all"):
            asked_of[kind] += 1
            right[kind] += guesses.get(one.question) == one.answer
    return {kind: Score(right[kind], asked_of[kind]) for kind in (*KINDS, "all") if asked_of[kind]}


def _split(name: Literal["train", "test"]) -> Iterator[Question]:
    try:
        package = importlib.import_module("easy_vqa")
    except ModuleNotFoundError as error:
        raise DataError("easy-VQA is not installed: pip install easy-vqa") from error
    if name == "train":
        questions, answers, images = package.get_train_questions()
        paths = package.get_train_image_paths()
    else:
        questions, answers, images = package.get_test_questions()
        paths = package.get_test_image_paths()
    for question, answer, image in zip(questions, answers, images, strict=True):
        yield Question(Path(paths[image]), question, answer, kind_of(question))


if __name__ == "__main__":
    for kind, score in blind_baseline(list(train()), list(test())).items():
        print(f"{kind:10} {score.right:5} of {score.questions:5}  {score.accuracy:6.1%}")
