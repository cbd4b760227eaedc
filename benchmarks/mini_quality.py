"""What `mini` gets right: every figure of docs/mini.md comes from this command.

    python benchmarks/mini_quality.py --data data --model build/mini --out docs/mini_quality.json

Held-out data only: easy-VQA's official test split, scenes of new seeds, colour-shape pairs never trained, a
drawing style never trained, and scikit-image's photographs. Beside each score stand its 95% bootstrap interval
and the blind score: the most frequent training answer to the question's own wording, no picture seen. A list's things
may be named in any order.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import time
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from mini_captions import captions, photographs

import vision_lm
from projector.calibrate import calibration_error, reported_part
from projector.data import easy_vqa
from projector.data.caption_objects import named_things
from projector.data.corpus import HELD_OUT_STYLE
from projector.data.pictures import load_pictures
from projector.data.samples import iter_jsonl
from projector.data.scene_vocabulary import SHAPES
from vision_lm.answer import Answer
from vision_lm.evaluate.answers import in_any_order
from vision_lm.model import VisionLM

# Kinds that ask about shapes and about drawings.
MIXED = ("existence", "count", "relation", "side", "place", "at", "nth", "size", "compare", "list")
MANY = 6  # from which on counts are told apart


@dataclass(frozen=True)
class Item:
    """One question with its right answers."""

    image: Path
    question: str
    answers: frozenset[str]
    kind: str
    about: str = ""  # "drawings" or "shapes", for kinds that ask about either

    def finer(self) -> Iterator[str]:
        """What of its kind it is, too."""
        if self.about:
            yield f"{self.kind}, of {self.about}"
        if self.kind == "count":
            most = max(map(int, self.answers))
            yield f"count, up to {MANY}" if most <= MANY else f"count, more than {MANY}"


@dataclass(frozen=True)
class Score:
    """Accuracy, 0-1, with its interval."""

    kind: str
    questions: int
    accuracy: float
    low: float
    high: float
    blind: float | None
    calibration_error: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--model", default="mini")
    parser.add_argument("--limit", type=int, help="so many questions of each task, chosen by a fixed seed")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    vlm = vision_lm.load(arguments.model)
    corpus = arguments.data / "corpus"
    names = {picture.name for picture in load_pictures(arguments.data)}
    tasks = {
        "easy-VQA test": ([_item(q) for q in easy_vqa.test()], _priors(easy_vqa.train())),
        "scenes, new seeds": (
            questions(corpus / "held_out" / "scenes.jsonl", names),
            _file_priors(corpus / "scenes.jsonl"),
        ),
        "scenes, unseen pairs": (
            questions(corpus / "held_out" / "pairs.jsonl", names),
            _file_priors(corpus / "scenes.jsonl"),
        ),
        "scenes, which side": _some_kinds(corpus, "reasoning", ("side",), names),
        "scenes, what is where": _some_kinds(corpus, "naming", ("at", "nth"), names),
        "drawings, unseen style": (
            held_out_names(arguments.data, corpus / "held_out" / "drawings.jsonl"),
            None,
        ),
    }
    report: dict[str, object] = {
        "date": time.strftime("%Y-%m-%d"),
        "torch": torch.__version__,
        "machine": platform.machine(),
        "limit": arguments.limit,
    }
    for name, (items, priors) in tasks.items():
        items = _limited(items, arguments.limit)
        scores = measure(vlm, items, priors)
        report[name] = [asdict(score) for score in scores]
        _print_table(name, scores)
    report["captions"] = captions(vlm, corpus / "held_out" / "scenes.jsonl", names, arguments.limit or 1000)
    print("captions:", report["captions"])
    report["photographs"] = photographs(vlm)
    print("photographs:", json.dumps(report["photographs"], indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def _some_kinds(
    corpus: Path, beside: str, kinds: Collection[str], names: Collection[str]
) -> tuple[list[Item], dict[str, str]]:
    """Questions of these kinds from a file beside the scenes, and their blind answers."""
    asked = questions(corpus / "held_out" / f"{beside}.jsonl", names)
    return [item for item in asked if item.kind in kinds], _file_priors(corpus / f"{beside}.jsonl")


def measure(vlm: VisionLM, items: Sequence[Item], priors: dict[str, str] | None) -> list[Score]:
    """One score for each kind of question, and one for all."""
    replies = vlm.ask([item.image for item in items], [item.question for item in items])
    right: dict[str, list[bool]] = defaultdict(list)
    blind: dict[str, list[bool]] = defaultdict(list)
    sure: dict[str, list[float]] = defaultdict(list)
    for item, reply in zip(items, replies, strict=True):
        if not isinstance(reply, Answer):
            raise reply
        for kind in (item.kind, *item.finer(), "all"):
            right[kind].append(in_any_order(reply.text) in map(in_any_order, item.answers))
            sure[kind].append(reply.confidence)
            if priors is not None:
                blind[kind].append(priors.get(plain(item.question), "yes") in item.answers)
    scores = []
    for kind in sorted(right, key=lambda kind: (kind == "all", kind)):
        low, high = interval(right[kind])
        guess = float(np.mean(blind[kind])) if priors is not None else None
        error = calibration_error(np.array(sure[kind]), np.array(right[kind]))
        scores.append(Score(kind, len(right[kind]), float(np.mean(right[kind])), low, high, guess, error))
    return scores


def interval(right: Sequence[bool]) -> tuple[float, float]:
    """95% bootstrap interval of the mean, 1,000 resamples, fixed seed."""
    values = np.asarray(right, dtype=float)
    draws = np.random.default_rng(0).integers(0, len(values), (1000, len(values)))
    low, high = np.percentile(values[draws].mean(1), [2.5, 97.5])
    return float(low), float(high)


def _item(question: easy_vqa.Question) -> Item:
    return Item(Path(question.image), question.question, frozenset([question.answer]), question.kind)


def questions(path: Path, names: Collection[str] = ()) -> list[Item]:
    """Of scenes. With the `names` of drawings, each says whether it or its answer names one."""
    return [
        Item(
            sample.images[0],
            turn.question,
            frozenset([plain(turn.answer)]),
            turn.kind,
            about(f"{turn.question} {turn.answer}", names) if turn.kind in MIXED else "",
        )
        for sample in reported_part(list(iter_jsonl(path)))
        for turn in sample.turns
        if turn.kind != "caption"
    ]


def about(text: str, names: Collection[str]) -> str:
    return "drawings" if any(thing.noun not in SHAPES for thing in named_things(text, names)) else "shapes"


def held_out_names(data: Path, path: Path) -> list[Item]:
    """One "What is this?" for every drawing of the unseen style whose name was trained in another style."""
    pictures = load_pictures(data)
    aliases: dict[str, set[str]] = defaultdict(set)
    for picture in pictures:
        aliases[picture.name] |= {picture.name, *picture.aliases}
    trained = {picture.name for picture in pictures if picture.style != HELD_OUT_STYLE}
    items = []
    for sample in reported_part(list(iter_jsonl(path))):
        name = _bare(next(turn.answer for turn in sample.turns if turn.kind == "name"))
        if name in trained:
            items.append(
                Item(
                    sample.images[0],
                    "What is this?",
                    frozenset(map(plain, _articled(aliases[name]))),
                    "name",
                )
            )
    return items


def _articled(names: Iterable[str]) -> list[str]:
    from projector.data.scene_grammar import with_article

    return [form for name in names for form in (name, with_article(name))]


def _bare(name: str) -> str:
    return name.removeprefix("a ").removeprefix("an ")


def plain(text: str) -> str:
    return text.strip().lower().rstrip(".?!")


def _priors(questions: Iterable[easy_vqa.Question]) -> dict[str, str]:
    return _most_frequent((question.question, question.answer) for question in questions)


def _file_priors(path: Path) -> dict[str, str]:
    return _most_frequent(
        (turn.question, turn.answer) for sample in iter_jsonl(path) for turn in sample.turns
    )


def _most_frequent(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for question, answer in pairs:
        counts[plain(question)][plain(answer)] += 1
    return {question: answers.most_common(1)[0][0] for question, answers in counts.items()}


def _limited(items: list[Item], limit: int | None) -> list[Item]:
    return random.Random(0).sample(items, limit) if limit and limit < len(items) else items


def _print_table(name: str, scores: Sequence[Score]) -> None:
    """As Markdown: docs/mini.md holds these lines."""
    print(
        f"\n| {name} | questions | right | 95% interval | blind | calibration error |\n|---|---|---|---|---|---|"
    )
    for score in scores:
        blind = "" if score.blind is None else f"{score.blind:.1%}"
        print(
            f"| {score.kind} | {score.questions:,} | {score.accuracy:.1%} | {score.low:.1%}–{score.high:.1%} "
            f"| {blind} | {score.calibration_error:.1%} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
