"""Whether low support by the picture tells which things of a caption are not there: held-out scenes, whose truth is known.

    python benchmarks/caption_support.py --data data [--model mini] [--length normal] [--limit 200]

A thing is there if the scene's own caption, which names everything, has one of its noun and, where a colour is said, of
that colour. Given are the area under the ROC curve for "is not there" of three readings of the same two probabilities,
with 95% bootstrap intervals over pictures, and what the threshold that the command line flags by finds.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import vision_lm
from projector.data.caption_objects import named_things
from projector.data.corpus import CAPTION_REQUESTS
from projector.data.held_out import reported_part
from projector.data.pictures import load_pictures
from projector.data.samples import Sample, iter_jsonl
from vision_lm.answer import UNSUPPORTED, Answer, Support

READINGS = {
    "seen - unseen (support)": lambda one: one.value,
    "seen": lambda one: one.seen,
    "seen / unseen": lambda one: one.seen / max(one.unseen, 1e-12),
}


@dataclass(frozen=True)
class Named:
    """One thing that a caption names."""

    picture: int
    support: Support
    there: bool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--model", default="mini", help="embedded name, folder or hub id (default: %(default)s)"
    )
    parser.add_argument("--data", type=Path, default=Path("data"), help="what `vision-lm data build` made")
    parser.add_argument("--length", choices=tuple(CAPTION_REQUESTS), default="normal")
    parser.add_argument("--limit", type=int, default=200, help="scenes (default: %(default)s)")
    given = parser.parse_args()
    vocabulary = frozenset(picture.name for picture in load_pictures(given.data))
    samples = list(iter_jsonl(given.data / "corpus" / "held_out" / "scenes.jsonl"))
    samples = [one for one in reported_part(samples) if truth(one)][: given.limit]
    replies = vision_lm.load(given.model).caption(
        [one.images[0] for one in samples], given.length, support=True
    )
    named = []
    for number, (sample, reply) in enumerate(zip(samples, replies, strict=True)):
        if not isinstance(reply, Answer):
            raise reply
        named += judged(number, reply, truth(sample), vocabulary)
    absent = np.array([not one.there for one in named])
    flagged = np.array([one.support.value < UNSUPPORTED for one in named])
    pictures = np.array([one.picture for one in named])
    print(f"{len(named):,} things named in {len(samples):,} captions, {absent.mean():.1%} of them not there")
    for name, reading in READINGS.items():
        scores = np.array([reading(one.support) for one in named])
        low, high = interval(scores, absent, pictures)
        print(f"AUC of {name:<24}{auc(scores, absent):.3f}   {low:.3f} to {high:.3f}")
    print(
        f"support below {UNSUPPORTED}: {flagged.mean():.1%} of the things; of these {absent[flagged].mean():.1%} are not "
        f"there; they are {flagged[absent].mean():.1%} of what is not; of the others {absent[~flagged].mean():.1%} are not"
    )


def truth(sample: Sample) -> str:
    """The caption that names everything, or nothing."""
    return next((turn.answer for turn in sample.turns if turn.question == CAPTION_REQUESTS["normal"]), "")


def judged(number: int, answer: Answer, caption: str, vocabulary: Collection[str]) -> list[Named]:
    """The phrases whose noun the vocabulary has; "a shape" or "a word" claims nothing that could be checked."""
    there = named_things(caption, vocabulary)
    found = []
    for one in answer.support or ():
        for thing in named_things(f"a {one.text}", vocabulary)[:1]:
            fits = (two.noun == thing.noun and thing.colour in (None, two.colour) for two in there)
            found.append(Named(number, one, any(fits)))
    return found


def auc(scores: np.ndarray, absent: np.ndarray) -> float:
    """The chance that of a thing that is absent and one that is there the absent one has the lower score; a tie is half."""
    low, high = scores[absent], np.sort(scores[~absent])
    if not len(low) or not len(high):
        return float("nan")
    below, up_to = np.searchsorted(high, low, "left"), np.searchsorted(high, low, "right")
    return float((len(high) - (below + up_to) / 2).mean() / len(high))


def interval(
    scores: np.ndarray, absent: np.ndarray, pictures: Sequence[int] | np.ndarray
) -> tuple[float, float]:
    """95% bootstrap interval over pictures, 1,000 resamples, fixed seed."""
    generator = np.random.default_rng(0)
    rows = [np.nonzero(pictures == one)[0] for one in np.unique(pictures)]
    drawn = []
    for _ in range(1000):
        places = np.concatenate([rows[one] for one in generator.integers(0, len(rows), len(rows))])
        drawn.append(auc(scores[places], absent[places]))
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return float(low), float(high)


if __name__ == "__main__":
    main()
