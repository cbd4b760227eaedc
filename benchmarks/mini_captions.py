"""What `mini` says of held-out scenes and of photographs: a part of benchmarks/mini_quality.py."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from PIL import Image

from projector.calibrate import reported_part
from projector.data.caption_objects import hallucinated, named_things
from projector.data.corpus import CAPTION_REQUESTS
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
