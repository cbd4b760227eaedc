"""Scorers against the official programs' numbers, and against arithmetic done by hand."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest

from vision_lm.evaluate.answers import choice, exact, listed, textvqa_accuracy, vqa_accuracy
from vision_lm.evaluate.bootstrap import rate, scores
from vision_lm.evaluate.captions import NO_JAVA, CocoCaptions
from vision_lm.evaluate.pope import Pope, says_yes
from vision_lm.evaluate.tasks import Item, Measured, Scorer
from vision_lm.evaluate.tokens import plain_tokens

OFFICIAL = json.loads((Path(__file__).parent / "official" / "vqa_accuracy.json").read_text(encoding="utf-8"))
HERE = Path("a.png")
CAPTIONS = {
    "1": ("a cat sits on a mat", ("a cat is on the mat", "the cat sits on a mat", "there is a cat")),
    "2": ("two dogs run", ("two dogs run in the grass", "dogs are running fast")),
    "3": ("a red bus", ("a bus drives by", "the red bus stops here now")),
}


def overall(scorer: Scorer, items: list[Item], answers: list[str]) -> dict[str, float]:
    found = scores(scorer, scorer.measure(items, answers), [item.id for item in items], 0, 20)
    return {name: one.value for name, one in found.items()}


def test_vqa_accuracy_is_the_official_programs() -> None:
    assert len(OFFICIAL["questions"]) >= 100
    for one in OFFICIAL["questions"]:
        item = Item("1", HERE, tuple(one["references"]))
        assert 100 * vqa_accuracy(item, one["answer"]) == pytest.approx(one["official"], abs=5e-5)


@pytest.mark.parametrize(("agreeing", "right"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_ten_annotators(agreeing: int, right: float) -> None:
    """Of 2 who agree: 8 subsets hold both (2/3), 2 hold one (1/3); (8 * 2/3 + 2 * 1/3) / 10 = 0.6."""
    item = Item("1", HERE, ("red",) * agreeing + tuple(f"other {n}" for n in range(10 - agreeing)))
    assert vqa_accuracy(item, "red") == pytest.approx(right)
    assert textvqa_accuracy(item, "red") == pytest.approx(right)


def test_annotators_of_one_mind_are_compared_letter_for_letter() -> None:
    item = Item("1", HERE, ("Dr. Who",) * 10)
    assert vqa_accuracy(item, "dr who") == 0 and textvqa_accuracy(item, "dr who") == 1


def test_pope() -> None:
    labels = ["yes", "yes", "yes", "no", "no"]
    said = ["Yes.", "No, there is not. Yes", "yes, a dog", "There is a dog", "no"]
    items = [Item(str(place), HERE, (label,), "?") for place, label in enumerate(labels)]
    assert overall(Pope(), items, said) == pytest.approx(
        {"accuracy": 3 / 5, "precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3, "yes rate": 3 / 5}
    )
    assert says_yes("Nothing") and not says_yes("I do not see it")


def test_nothing_found_divides_by_nothing() -> None:
    found = overall(Pope(), [Item("1", HERE, ("no",))], ["no"])
    assert found == {"accuracy": 1, "precision": 0, "recall": 0, "f1": 0, "yes rate": 0}


def test_a_list_may_be_in_any_order() -> None:
    """The same things, each as often as it is there; neither fewer nor others."""
    item = Item("1", HERE, ("two red stars, a cup and an owl",))
    assert listed(item, "An owl, a cup, and two red stars.") and listed(
        item, "a cup, an owl and two red stars"
    )
    assert listed(item, "a red star, a cup, an owl and a red star"), "counted or one by one"
    for wrong in (
        "a cup and an owl",
        "a red star, a cup and an owl",
        "two red stars, a cup, an owl and a cup",
        "three red stars, a cup and an owl",
    ):
        assert not listed(item, wrong)


def test_exact_and_choices() -> None:
    assert exact(Item("1", HERE, ("Left",)), " left. ") and not exact(
        Item("1", HERE, ("left",)), "to the left"
    )
    options = ("iron", "a copper coin", "B")
    said = {
        "B": "B",
        "(a)": "A",
        "b. a copper coin": "B",
        "Iron": "A",
        "The answer is C.": "C",
        "A big iron": None,
        "D": None,
    }
    assert {text: choice(text, options) for text in said} == said


def bleu_by_hand(order: int) -> float:
    """Papineni's formula, straight: clipped matches over n-grams, geometric mean, brevity penalty of nearest lengths."""

    def grams(text: str, n: int) -> list[tuple[str, ...]]:
        words = text.split()
        return [tuple(words[at : at + n]) for at in range(len(words) - n + 1)]

    precision = []
    for n in range(1, order + 1):
        match = total = 0
        for said, references in CAPTIONS.values():
            for gram in set(grams(said, n)):
                match += min(grams(said, n).count(gram), max(grams(one, n).count(gram) for one in references))
            total += len(grams(said, n))
        precision.append(match / total)
    length = sum(len(said.split()) for said, _ in CAPTIONS.values())
    nearest = sum(
        min((abs(len(one.split()) - len(said.split())), len(one.split())) for one in references)[1]
        for said, references in CAPTIONS.values()
    )
    return math.prod(precision) ** (1 / order) * (1 if length >= nearest else math.exp(1 - nearest / length))


def caption_items() -> tuple[list[Item], list[str]]:
    items = [Item(key, Path(f"{key}.png"), references) for key, (_, references) in CAPTIONS.items()]
    return items, [said for said, _ in CAPTIONS.values()]


def test_captions_without_java() -> None:
    pytest.importorskip("pycocoevalcap")
    items, said = caption_items()
    found = overall(CocoCaptions(java=False), items, said)
    for order in (1, 2, 3):
        assert found[f"BLEU-{order}"] == pytest.approx(bleu_by_hand(order), abs=1e-6)
    assert "METEOR" not in found and NO_JAVA in CocoCaptions(java=False).measure(items, said).notes
    # Word for word the same as a reference, for every picture: nothing can score higher.
    best = overall(CocoCaptions(java=False), items, [references[0] for _, references in CAPTIONS.values()])
    assert best["ROUGE-L"] == pytest.approx(1) and best["BLEU-1"] == pytest.approx(1)


@pytest.mark.skipif(shutil.which("java") is None, reason="the PTB tokenizer and METEOR are Java programs")
def test_captions_are_those_of_cocos_own_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    """COCOEvalCap's steps on the same captions, with capitals, punctuation, empty and odd texts among them."""
    pytest.importorskip("pycocoevalcap")
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    items, said = caption_items()
    items.append(Item("4", HERE, ("The man's hat isn't red.", "A man -- with (one) hat")))
    said.append("A man's hat, isn't it?")
    ours = overall(CocoCaptions(java=True), items, said)
    tokenizer = PTBTokenizer()
    truth = tokenizer.tokenize({item.id: [{"caption": one} for one in item.references] for item in items})
    result = tokenizer.tokenize({item.id: [{"caption": one}] for item, one in zip(items, said, strict=True)})
    bleu = Bleu(4).compute_score(truth, result, verbose=0)[0]
    official = {f"BLEU-{order + 1}": value for order, value in enumerate(bleu)}
    official |= {
        "ROUGE-L": Rouge().compute_score(truth, result)[0],
        "CIDEr-D": Cider().compute_score(truth, result)[0],
    }
    for name, value in official.items():
        assert ours[name] == pytest.approx(value, abs=1e-6), name
    assert ours["METEOR"] == pytest.approx(Meteor().compute_score(truth, result)[0], abs=1e-6)


def test_a_line_end_in_a_caption_shifts_no_other() -> None:
    assert plain_tokens("The man's hat,\n isn't 3.5!") == "the man 's hat is n't 3 5"


def test_the_interval_holds_the_standard_error() -> None:
    """Of 400 answers, each about its own picture, half right: 0.5 +- 1.96 * 0.025; twice as wide if four share one."""

    class Mean:
        headline = "accuracy"

        def measure(self, items: object, answers: object) -> Measured:
            raise NotImplementedError

        def combine(self, sums: np.ndarray) -> dict[str, np.ndarray]:
            return {"accuracy": sums[..., 0] / sums[..., 1]}

    right = np.repeat([0.0, 1.0], 200)
    measured = Measured(np.stack([right, np.ones(400)], axis=1), right)
    alone = scores(Mean(), measured, [str(n) for n in range(400)], 0, 2000)["accuracy"]
    shared = scores(Mean(), measured, [str(n // 4) for n in range(400)], 0, 2000)["accuracy"]
    assert (alone.low, alone.high) == pytest.approx((0.451, 0.549), abs=0.006)
    assert shared.high - shared.low == pytest.approx(2 * (alone.high - alone.low), rel=0.1)
    assert alone == scores(Mean(), measured, [str(n) for n in range(400)], 0, 2000)["accuracy"]
    assert alone == rate(right.tolist(), [str(n) for n in range(400)], 0, 2000)
