"""POPE: is this object in the picture? (Li et al. 2023, arXiv 2305.10355)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vision_lm.evaluate.tasks import Item, Measured, Scores, mean

NEGATIONS = frozenset(("No", "no", "not"))


def says_yes(answer: str) -> bool:
    """As POPE's evaluation reads it: the first sentence is a no if it has the word no, No or not, and else a yes."""
    sentence = answer.partition(".")[0].replace(",", "")
    return NEGATIONS.isdisjoint(sentence.split(" "))


class Pope:
    """Accuracy, precision, recall and F1 of "yes", and how often yes is said."""

    headline = "accuracy"

    def measure(self, items: Sequence[Item], answers: Sequence[str]) -> Measured:
        """Counts: true positives, false positives, true negatives, false negatives."""
        said = np.array([says_yes(answer) for answer in answers], dtype=bool)
        truth = np.array([item.references[0] == "yes" for item in items], dtype=bool)
        counts = np.stack([said & truth, said & ~truth, ~said & ~truth, ~said & truth], axis=1)
        return Measured(counts.astype(float), (said == truth).astype(float))

    def combine(self, sums: np.ndarray) -> Scores:
        """F1 is 0 where nothing that is there is found."""
        true_yes, false_yes, true_no, false_no = (sums[..., column] for column in range(4))
        parts = np.stack(
            [
                true_yes + true_no,
                true_yes,
                true_yes + false_yes,
                true_yes + false_no,
                2 * true_yes,
                2 * true_yes + false_yes + false_no,
                true_yes + false_yes + true_no + false_no,
            ],
            axis=-1,
        )
        right, found, yes, there, twice, both, everything = range(7)
        return {
            "accuracy": mean(parts, right, everything),
            "precision": mean(parts, found, yes),
            "recall": mean(parts, found, there),
            "f1": mean(parts, twice, both),
            "yes rate": mean(parts, yes, everything),
        }
