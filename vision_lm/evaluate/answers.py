"""Scorers of short answers: VQA accuracy, TextVQA accuracy, exact match, and multiple choice."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np

from projector.data.scene_grammar import NUMBERS, singular, with_article
from vision_lm.evaluate.normalise import plain, stripped, textvqa_normalised, vqa_normalised
from vision_lm.evaluate.tasks import Item, Measured, Scores, mean

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
AGREEING = 3  # annotators who make an answer wholly right


class Accuracy:
    """The mean of how right each answer is."""

    headline = "accuracy"

    def __init__(self, right: Callable[[Item, str], float]) -> None:
        self._right = right

    def measure(self, items: Sequence[Item], answers: Sequence[str]) -> Measured:
        """Counts: how right, and 1."""
        right = np.array([self._right(*pair) for pair in zip(items, answers, strict=True)], dtype=float)
        return Measured(np.stack([right, np.ones(len(right))], axis=1), right)

    def combine(self, sums: np.ndarray) -> Scores:
        return {self.headline: mean(sums, 0, 1)}


def vqa_accuracy(item: Item, answer: str) -> float:
    """VQAv2's accuracy: of each nine of ten annotators, min(1, those who agree / 3), on average.

    Where all annotators say the same, nothing is normalised, as in the official program.
    """
    said, references = stripped(answer), [stripped(one) for one in item.references]
    if len(set(references)) > 1:
        said, references = vqa_normalised(said), [vqa_normalised(one) for one in references]
    return _soft(said, references)


def textvqa_accuracy(item: Item, answer: str) -> float:
    """The same rule after TextVQA's own normalisation, always applied."""
    return _soft(textvqa_normalised(answer), [textvqa_normalised(one) for one in item.references])


def _soft(said: str, references: Sequence[str]) -> float:
    agree = references.count(said)
    others = (agree - (one == said) for one in references)
    return sum(min(1.0, count / AGREEING) for count in others) / len(references)


def exact(item: Item, answer: str) -> float:
    """1 for one of the references, letter for letter but for case, blanks around it and a closing . ? or !"""
    return float(plain(answer) in {plain(one) for one in item.references})


def listed(item: Item, answer: str) -> float:
    """`exact`, but a list may name its things in any order, and those of a kind together or one by one."""
    return float(in_any_order(answer) in [in_any_order(one) for one in item.references])


def in_any_order(text: str) -> list[str]:
    """ "Two red stars and a cup" -> each thing that it lists, sorted: "a cup", "a red star", "a red star"."""
    parts = re.split(r", and |, | and ", plain(text))
    return sorted(thing for part in parts for thing in _each(part))


def _each(part: str) -> list[str]:
    """ "two red stars" -> "a red star" twice; what has no number in front stays as it is."""
    number, _, things = part.partition(" ")
    if not things or number not in NUMBERS[2:]:
        return [part]
    return [with_article(singular(things))] * NUMBERS.index(number)


def chosen(item: Item, answer: str) -> float:
    """1 where the right option is chosen, by its letter ("B", "(b)", "B. iron", "The answer is B.") or its text."""
    return float(choice(answer, item.choices) == item.references[0])


def choice(answer: str, choices: Sequence[str]) -> str | None:
    """The letter that an answer chooses; None for none of them, which counts as wrong and is never guessed."""
    letters = LETTERS[: len(choices)]
    for letter, text in zip(letters, choices, strict=True):
        if len(text) > 1 and plain(answer) == plain(
            text
        ):  # an option may be "B" itself, but a letter is asked for
            return letter
    first = re.match(rf"\s*\(?([{letters}{letters.lower()}])(?:[).:,]|\s*$)", answer)
    found = first or re.search(rf"\banswer is \(?([{letters}])\b", answer)
    return found[1].upper() if found else None
