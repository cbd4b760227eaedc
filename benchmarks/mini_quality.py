"""What `mini` gets right: every figure of docs/mini.md comes from this command.

    python benchmarks/mini_quality.py --data data --model build/mini --out docs/mini_quality.json

Held-out data only: easy-VQA's official test split, scenes of new seeds, colour-shape pairs never trained, a
drawing style and artists never trained, and photographs that come with packages. Beside each score stand its 95% bootstrap interval
and the blind score: the most frequent training answer to the question's own wording, no picture seen. A list's things
may be named in any order.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import re
import time
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from mini_captions import captions, photographs
from mini_tables import SCORE_HEAD, score_line

import vision_lm
from projector.data import easy_vqa
from projector.data.caption_objects import named_things
from projector.data.pictures import load_pictures
from projector.data.samples import iter_jsonl
from projector.data.scene_vocabulary import COLOURS, SHAPES
from vision_lm.evaluate import own
from vision_lm.evaluate.answers import exact, listed
from vision_lm.evaluate.asking import Asking
from vision_lm.evaluate.bootstrap import rate
from vision_lm.evaluate.normalise import plain
from vision_lm.evaluate.predictions import Prediction
from vision_lm.evaluate.selective import (
    accuracy_of_the_surest,
    calibration_error,
    calibration_error_by_chance,
)
from vision_lm.evaluate.settings import UNDER_WAY, TaskFiles
from vision_lm.evaluate.tasks import Item
from vision_lm.model import VisionLM

# Kinds that ask about shapes and about drawings.
MIXED = ("existence", "count", "relation", "side", "place", "at", "nth", "size", "compare", "list")
# Words of questions that are drawings' names as well: "can you see", "in this picture".
_ABOUT_IT = re.compile(r"\bcan (you|be)\b|\b(this|the) (picture|image|photo)\b", re.IGNORECASE)
MANY = 6  # from which on counts are told apart
Priors = Mapping[str, str]  # the most frequent training answer to each question's wording


@dataclass(frozen=True)
class Asked:
    """Some held-out questions, and what is answered to them without a look."""

    items: Sequence[Item]
    priors: Priors | None


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
    by_chance: float  # what it would be on average if the confidences were right
    surest: float  # accuracy of the surest 80%


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
    report: dict[str, object] = {
        "date": time.strftime("%Y-%m-%d"),
        "torch": torch.__version__,
        "machine": platform.machine(),
        "limit": arguments.limit,
    }
    for name, asked in tasks(arguments.data).items():
        scores = measure(vlm, _limited(asked.items, arguments.limit), asked.priors, names)
        report[name] = rows = [asdict(score) for score in scores]
        print("", *SCORE_HEAD, *(score_line(name, row) for row in rows), sep="\n", flush=True)
    limit, held_out = arguments.limit or 1000, corpus / "held_out"
    report["captions"] = captions(vlm, held_out / "scenes.jsonl", names, limit)
    report["captions of drawings"] = captions(vlm, held_out / "drawings.jsonl", names, limit, checks=(False,))
    print("captions:", report["captions"], report["captions of drawings"])
    report["photographs"] = photographs(vlm, arguments.data)
    print("photographs:", json.dumps(report["photographs"], indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def tasks(data: Path) -> dict[str, Asked]:
    """By name, in the order of the table."""
    files, corpus = TaskFiles(data=data), data / "corpus"
    scenes = _file_priors(corpus / "scenes.jsonl")
    return {
        "easy-VQA test": Asked(own.easy_vqa(files).items, _priors(easy_vqa.train())),
        "scenes, new seeds": Asked(own.scenes(files).items, scenes),
        "scenes, unseen pairs": Asked(own.scene_questions(corpus / "held_out" / "pairs.jsonl"), scenes),
        "scenes, which side": _some_kinds(corpus, "reasoning", ("side",)),
        "scenes, what is where": _some_kinds(corpus, "naming", ("at", "nth")),
        "scenes, follow-ups": Asked(own.dialogues(files).items, _file_priors(corpus / "dialogues.jsonl")),
        "scenes, absent things": Asked(own.scene_questions(corpus / "held_out" / "absent.jsonl"), None),
        "drawings, unseen style": Asked(own.names(files).items, None),
        "pictures, unseen artists": Asked(own.hands(files).items, None),
    }


def _some_kinds(corpus: Path, beside: str, kinds: Collection[str]) -> Asked:
    """Questions of these kinds from a file beside the scenes, and their blind answers."""
    items = own.scene_questions(corpus / "held_out" / f"{beside}.jsonl")
    return Asked([one for one in items if one.kind in kinds], _file_priors(corpus / f"{beside}.jsonl"))


def measure(
    vlm: VisionLM, items: Sequence[Item], priors: Priors | None, names: Collection[str]
) -> list[Score]:
    """One score for each kind of question, and one for all. With the `names` of drawings, more kinds are told apart."""
    replies = Asking(vlm, "{question}", "normal", None, UNDER_WAY)(items, blind=False)
    right, sure, blind = (np.zeros(len(items)) for _ in range(3))
    of_kind: dict[str, list[int]] = defaultdict(list)
    for place, (item, reply) in enumerate(zip(items, replies, strict=True)):
        if not isinstance(reply, Prediction):
            raise SystemExit(reply.error)
        # Nothing is right about what is not there but to say so, in these words or by holding the answer back.
        held_back = item.kind == "absent" and bool(reply.unanswerable)
        right[place], sure[place] = max(listed(item, reply.prediction), held_back), reply.confidence
        if priors is not None:
            blind[place] = exact(item, priors.get(plain(item.question or ""), "yes"))
        for kind in (item.kind, *finer(item, names), "all"):
            of_kind[kind].append(place)
    scores = []
    for kind in sorted(of_kind, key=lambda kind: (kind == "all", kind)):
        places = of_kind[kind]
        found = rate(right[places].tolist(), [str(items[place].image) for place in places])
        guess = float(blind[places].mean()) if priors is not None else None
        error = calibration_error(sure[places], right[places].astype(bool))
        chance = calibration_error_by_chance(sure[places])
        surest = accuracy_of_the_surest(sure[places], right[places])
        scores.append(
            Score(kind, found.items, found.value, found.low, found.high, guess, error, chance, surest)
        )
    return scores


def finer(item: Item, names: Collection[str]) -> Iterator[str]:
    """What of its kind a question is, too: about drawings, by their names, or shapes; of few things or of many."""
    if item.kind in MIXED:
        answer = "" if item.references[0] in COLOURS else item.references[0]  # "orange" is no fruit there
        things = named_things(f"{_ABOUT_IT.sub(' ', item.question or '')}. {answer}", names)
        drawings = any(thing.noun not in SHAPES for thing in things)
        yield f"{item.kind}, of {'drawings' if drawings else 'shapes'}"
    if item.kind == "existence":
        yield f"existence, of what is {'' if item.references[0] == 'yes' else 'not '}there"
    if item.kind == "count":
        few = int(item.references[0]) <= MANY
        yield f"count, up to {MANY}" if few else f"count, more than {MANY}"


def _priors(questions: Iterable[easy_vqa.Question]) -> Priors:
    return _most_frequent((question.question, question.answer) for question in questions)


def _file_priors(path: Path) -> Priors:
    return _most_frequent(
        (turn.question, turn.answer) for sample in iter_jsonl(path) for turn in sample.turns
    )


def _most_frequent(pairs: Iterable[tuple[str, str]]) -> Priors:
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for question, answer in pairs:
        counts[plain(question)][plain(answer)] += 1
    return {question: answers.most_common(1)[0][0] for question, answers in counts.items()}


def _limited(items: Sequence[Item], limit: int | None) -> Sequence[Item]:
    return random.Random(0).sample(items, limit) if limit and limit < len(items) else items


if __name__ == "__main__":
    main()
