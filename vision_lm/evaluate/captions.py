"""COCO's caption metrics by the COCO authors' code in pycocoevalcap: BLEU-1..4, ROUGE-L, CIDEr-D, METEOR, SPICE.

BLEU: Papineni et al. 2002; ROUGE: Lin 2004; CIDEr-D: Vedantam et al. 2015 (arXiv 1411.5726); METEOR: Denkowski and
Lavie 2014; SPICE: Anderson et al. 2016 (arXiv 1607.08822). Published scores are of captions that Stanford's PTB
tokenizer has split, a Java program. Without Java a plain tokenizer takes its place, and the scores say so.
"""

from __future__ import annotations

import contextlib
import io
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vision_lm.errors import EvaluationError
from vision_lm.evaluate.tasks import Item, Measured, Scores, mean
from vision_lm.evaluate.tokens import plain_tokens, ptb_tokens

ORDERS = 4  # of n-grams
TINY, SMALL = 1e-15, 1e-9  # COCO's own: a caption without a match scores a little above zero
# Counts: 1; lengths of captions and of references; n-grams of captions, and those that match; then sums of scores.
ONE, SAID, REFERENCE, NGRAMS, MATCHES, SUMS = 0, 1, 2, 3, 3 + ORDERS, 3 + 2 * ORDERS
NO_JAVA = (
    "no Java here: captions were split by a plain tokenizer, so these scores compare with no published ones"
)


class CocoCaptions:
    """Scores of captions against several references each. `java`: whether to use it; None: where it is there."""

    headline = ""  # n-gram statistics are of the whole set

    def __init__(self, java: bool | None = None) -> None:
        self._java = shutil.which("java") is not None if java is None else java
        self._names = ["ROUGE-L", "CIDEr-D"]

    def measure(self, items: Sequence[Item], answers: Sequence[str]) -> Measured:
        """Raises EvaluationError without pycocoevalcap."""
        try:
            from pycocoevalcap.bleu.bleu_scorer import BleuScorer
            from pycocoevalcap.cider.cider import Cider
            from pycocoevalcap.rouge.rouge import Rouge
        except ModuleNotFoundError as error:
            raise EvaluationError(
                f"{error.name} is not installed; pip install 'vision-lm[eval]' for the scores of captions"
            ) from error
        said, references = self._tokens(items, answers)
        bleu = BleuScorer(n=ORDERS)
        for one in said:
            bleu += (said[one][0], references[one])
        columns = [np.array([_bleu_counts(one) for one in bleu.ctest])]  # (N, SUMS)
        self._names = ["ROUGE-L", "CIDEr-D"]
        rouge, cider = Rouge().compute_score(references, said)[1], Cider().compute_score(references, said)[1]
        columns += [np.asarray(one, dtype=float)[:, None] for one in (rouge, cider)]
        notes = [] if self._java else [NO_JAVA]
        for name, scores, note in self._of_java(references, said):
            if scores is None:
                notes.append(note)
            else:
                self._names.append(name)
                columns.append(scores[:, None])
        return Measured(np.concatenate(columns, axis=1), np.full(len(items), np.nan), tuple(notes))

    def combine(self, sums: np.ndarray) -> Scores:
        """BLEU from sums over the corpus; of the others the mean, in which CIDEr's weights of words stay as they are."""
        ratio = (sums[..., SAID] + TINY) / (sums[..., REFERENCE] + SMALL)
        short = np.where(ratio < 1, np.exp(1 - 1 / ratio), 1.0)
        found: dict[str, np.ndarray] = {}
        product = np.ones(sums.shape[:-1])
        for order in range(ORDERS):
            product = product * (sums[..., MATCHES + order] + TINY) / (sums[..., NGRAMS + order] + SMALL)
            found[f"BLEU-{order + 1}"] = product ** (1 / (order + 1)) * short
        for place, name in enumerate(self._names):
            found[name] = mean(sums, SUMS + place, ONE)
        return found

    def _tokens(
        self, items: Sequence[Item], answers: Sequence[str]
    ) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
        """Captions and references of each item, split into words with a blank between them."""
        texts = [
            text for item, answer in zip(items, answers, strict=True) for text in (answer, *item.references)
        ]
        split = iter(ptb_tokens(texts) if self._java else map(plain_tokens, texts))
        said, references = {}, {}
        for item in items:
            said[item.id] = [next(split)]
            references[item.id] = [next(split) for _ in item.references]
        return said, references

    def _of_java(
        self, references: dict[str, list[str]], said: dict[str, list[str]]
    ) -> list[tuple[str, np.ndarray | None, str]]:
        """METEOR and SPICE of each caption, or None and why there is none."""
        if not self._java:
            return [(name, None, f"{name} not computed: it needs Java") for name in ("METEOR", "SPICE")]
        from pycocoevalcap.meteor.meteor import Meteor
        from pycocoevalcap.spice import spice

        results: list[tuple[str, np.ndarray | None, str]] = []
        models = Path(spice.__file__).parent / "lib" / "stanford-corenlp-3.6.0.jar"
        for name, make in (("METEOR", Meteor), ("SPICE", spice.Spice)):
            if name == "SPICE" and not models.is_file():
                results.append((name, None, f"SPICE not computed: spice/lib lacks {models.name}"))
                continue
            try:
                with contextlib.redirect_stdout(io.StringIO()):
                    total, scores = make().compute_score(references, said)
                if name == "SPICE":
                    scores = [one["All"]["f"] for one in scores]
                each = np.asarray(scores, dtype=float)
                # COCO's METEOR is of the counts of all captions, which Java keeps: the mean is moved to it.
                results.append((name, each + (float(total) - each.mean()), ""))
            except Exception as error:  # a Java program that cannot run here costs its own score
                reason = " ".join(str(error).split())[:120]
                results.append((name, None, f"{name} not computed: {type(error).__name__} {reason}"))
        return results


def _bleu_counts(one: dict[str, object]) -> list[float]:
    """What pycocoevalcap counted of one caption; of its references' lengths the nearest, the shorter of two."""
    length, lengths = one["testlen"], one["reflen"]
    assert isinstance(length, int) and isinstance(lengths, list)
    nearest = min((abs(reference - length), reference) for reference in lengths)[1]
    guess, correct = one["guess"], one["correct"]
    assert isinstance(guess, list) and isinstance(correct, list)
    return [1, length, nearest, *guess, *correct]
