"""What `mini` gets right: every figure of docs/mini.md comes from this command.

    python benchmarks/mini_quality.py --data data --model build/mini --out docs/mini_quality.json

Held-out data only: easy-VQA's official test split, scenes of new seeds, colour-shape pairs never trained, a
drawing style never trained, and scikit-image's photographs. Beside each score stand its 95% bootstrap interval
and the blind score: the most frequent training answer to the question's own wording, no picture seen.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import re
import time
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import vision_lm
from projector.calibrate import calibration_error, reported_part
from projector.data import easy_vqa
from projector.data.caption_objects import hallucinated, named_things
from projector.data.corpus import CAPTION_REQUESTS
from projector.data.pictures import load_pictures
from projector.data.samples import iter_jsonl
from projector.data.scenes import Scene, Thing
from vision_lm.answer import Answer
from vision_lm.model import VisionLM
from vision_lm.prompts import CaptionLength

# scikit-image's photographs, with the words of which a caption must hold one.
PHOTOGRAPHS = {
    "chelsea": ("cat",),
    "coffee": ("coffee", "espresso", "cup"),
    "rocket": ("rocket", "missile", "shuttle"),
    "astronaut": ("person", "astronaut", "space suit"),
}
NOWHERE = (0.0, 0.0, 0.0, 0.0)  # the box of a thing that only counts as there
PHOTOGRAPH_QUESTIONS = ("What is this?", "Is there a cat?", "Is there a dog?", "Is there a person?")


@dataclass(frozen=True)
class Item:
    """One question with its right answers."""

    image: Path
    question: str
    answers: frozenset[str]
    kind: str


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
    tasks = {
        "easy-VQA test": ([_item(q) for q in easy_vqa.test()], _priors(easy_vqa.train())),
        "scenes, new seeds": (
            questions(corpus / "held_out" / "scenes.jsonl"),
            _file_priors(corpus / "scenes.jsonl"),
        ),
        "scenes, unseen pairs": (
            questions(corpus / "held_out" / "pairs.jsonl"),
            _file_priors(corpus / "scenes.jsonl"),
        ),
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
    names = {picture.name for picture in load_pictures(arguments.data)}
    report["captions"] = captions(vlm, corpus / "held_out" / "scenes.jsonl", names, arguments.limit or 1000)
    print("captions:", report["captions"])
    report["photographs"] = photographs(vlm)
    print("photographs:", json.dumps(report["photographs"], indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def measure(vlm: VisionLM, items: Sequence[Item], priors: dict[str, str] | None) -> list[Score]:
    """One score for each kind of question, and one for all."""
    replies = vlm.ask([item.image for item in items], [item.question for item in items])
    right: dict[str, list[bool]] = defaultdict(list)
    blind: dict[str, list[bool]] = defaultdict(list)
    sure: dict[str, list[float]] = defaultdict(list)
    for item, reply in zip(items, replies, strict=True):
        if not isinstance(reply, Answer):
            raise reply
        for kind in (item.kind, "all"):
            right[kind].append(plain(reply.text) in item.answers)
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


def captions(
    vlm: VisionLM, path: Path, names: Collection[str], limit: int
) -> dict[CaptionLength, dict[str, float]]:
    """Of the objects that captions name, the share that is there; of those that are there, the share that is named.

    An object is a shape with its colour, or one of `names`, every cut-out that there is. What is there is read from
    the normal training caption, which names everything.
    """
    samples = [s for s in reported_part(list(iter_jsonl(path))) if any(t.kind == "caption" for t in s.turns)][
        :limit
    ]
    truths = [
        named_things(next(t.answer for t in s.turns if t.question == CAPTION_REQUESTS["normal"]), names)
        for s in samples
    ]
    result = {}
    for length in CAPTION_REQUESTS:
        replies = vlm.caption([sample.images[0] for sample in samples], length=length)
        named = wrong = there = found = 0
        for reply, truth in zip(replies, truths, strict=True):
            if not isinstance(reply, Answer):
                raise reply
            things = tuple(Thing(t.noun, t.colour, "", None, NOWHERE) for t in truth for _ in range(t.count))
            said = hallucinated(reply.text, Scene(things, "white", None), names)
            named, wrong = named + said[0], wrong + said[1]
            mentioned = {(t.colour, t.noun) for t in named_things(reply.text, names)}
            there += len(things)
            found += sum((thing.colour, thing.noun) in mentioned for thing in things)
        result[length] = {"named": named, "true": 1 - wrong / max(named, 1), "recall": found / max(there, 1)}
    return result


def photographs(vlm: VisionLM) -> dict[str, dict[str, object]]:
    """What is said of scikit-image's photographs, and whether the first caption names what is there."""
    from skimage import data

    result: dict[str, dict[str, object]] = {}
    for name, words in PHOTOGRAPHS.items():
        image = Image.fromarray(getattr(data, name)())
        said = {length: str(vlm.caption(image, length=length)) for length in CAPTION_REQUESTS}
        named = {
            length: any(re.search(rf"\b{word}\b", text.lower()) for word in words)
            for length, text in said.items()
        }
        asked = {question: str(vlm.ask(image, question)) for question in PHOTOGRAPH_QUESTIONS}
        result[name] = {"said": said, "named": named, "answers": asked}
    return result


def _item(question: easy_vqa.Question) -> Item:
    return Item(Path(question.image), question.question, frozenset([question.answer]), question.kind)


def questions(path: Path) -> list[Item]:
    return [
        Item(sample.images[0], turn.question, frozenset([plain(turn.answer)]), turn.kind)
        for sample in reported_part(list(iter_jsonl(path)))
        for turn in sample.turns
        if turn.kind != "caption"
    ]


def held_out_names(data: Path, path: Path) -> list[Item]:
    """One "What is this?" for every drawing of the unseen style whose name was trained in another style."""
    pictures = load_pictures(data)
    aliases: dict[str, set[str]] = defaultdict(set)
    for picture in pictures:
        aliases[picture.name] |= {picture.name, *picture.aliases}
    trained = {picture.name for picture in pictures if picture.style != "fluent-flat"}
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
