"""How much of what captions of scenes name is there, and how much of what is there they name."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from projector.data.caption_objects import hallucinated, named_things
from projector.data.corpus import CAPTION_REQUESTS
from projector.data.samples import Sample
from projector.data.scenes import Scene, Thing
from vision_lm.answer import Answer
from vision_lm.evaluate.bootstrap import ratio
from vision_lm.evaluate.selective import calibration_error
from vision_lm.model import VisionLM
from vision_lm.prompts import CaptionLength

NOWHERE = (0.0, 0.0, 0.0, 0.0)  # the box of a thing that only counts as there


@dataclass(frozen=True)
class CaptionTruth:
    """Of the captions of one length."""

    named: int  # objects: shapes with their colours, and cut-outs by name
    true: float  # the share of them that is there
    low: float  # its 95% interval, over pictures
    high: float
    recall: float  # of those that are there, the share that is named
    whole: float  # the share of captions that name nothing that is not there
    calibration_error: float  # of the captions' confidence that they do not


@dataclass(frozen=True)
class JudgedCaption:
    """What one caption names, counted in objects."""

    answer: Answer
    picture: str
    named: int
    true: int  # of those named, there
    there: int
    mentioned: int  # of those there, named


def caption_truth(
    vlm: VisionLM, samples: Sequence[Sample], names: Collection[str], *, checked: bool = False
) -> dict[CaptionLength, CaptionTruth]:
    """For each length; `checked` as for `VisionLM.caption`. `names`: every cut-out that there is. Raises what a caption raises."""
    result = {}
    for length, judged in judged_captions(vlm, samples, names, checked=checked).items():
        pictures = [one.picture for one in judged]
        named = [one.named for one in judged]
        share = ratio([one.true for one in judged], named, pictures)
        recall = ratio([one.mentioned for one in judged], [one.there for one in judged], pictures).value
        right = np.array([one.true == one.named for one in judged])
        error = calibration_error(np.array([one.answer.confidence for one in judged]), right)
        result[length] = CaptionTruth(
            sum(named), share.value, share.low, share.high, recall, float(right.mean()), error
        )
    return result


def judged_captions(
    vlm: VisionLM, samples: Sequence[Sample], names: Collection[str], *, checked: bool = False
) -> dict[CaptionLength, list[JudgedCaption]]:
    """The captions of each length, in the samples' order.

    What is there is read from the sample's own normal caption, which names everything; samples without captions are left
    out. Raises what a caption raises.
    """
    samples = [one for one in samples if any(turn.kind == "caption" for turn in one.turns)]
    truths = [
        named_things(next(t.answer for t in s.turns if t.question == CAPTION_REQUESTS["normal"]), names)
        for s in samples
    ]
    result = {}
    for length in CAPTION_REQUESTS:
        replies = vlm.caption([sample.images[0] for sample in samples], length, checked=checked)
        judged = []
        for sample, reply, truth in zip(samples, replies, truths, strict=True):
            if not isinstance(reply, Answer):
                raise reply
            things = tuple(Thing(t.noun, t.colour, "", None, NOWHERE) for t in truth for _ in range(t.count))
            said = hallucinated(reply.text, Scene(things, "white", None), names)
            mentioned = {(t.colour, t.noun) for t in named_things(reply.text, names)}
            found = sum((thing.colour, thing.noun) in mentioned for thing in things)
            judged.append(
                JudgedCaption(reply, str(sample.images[0]), said[0], said[0] - said[1], len(things), found)
            )
        result[length] = judged
    return result
