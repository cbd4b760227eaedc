"""How much of what captions of scenes name is there, and how much of what is there they name."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from projector.data.caption_objects import hallucinated, named_things
from projector.data.corpus import CAPTION_REQUESTS
from projector.data.samples import Sample
from projector.data.scenes import Scene, Thing
from vision_lm.answer import Answer
from vision_lm.evaluate.bootstrap import ratio
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


def caption_truth(
    vlm: VisionLM, samples: Sequence[Sample], names: Collection[str], *, checked: bool = False
) -> dict[CaptionLength, CaptionTruth]:
    """For each length; `checked` as for `VisionLM.caption`. `names`: every cut-out that there is.

    What is there is read from the sample's own normal caption, which names everything; samples without captions are left
    out. Raises what a caption raises.
    """
    samples = [one for one in samples if any(turn.kind == "caption" for turn in one.turns)]
    truths = [
        named_things(next(t.answer for t in s.turns if t.question == CAPTION_REQUESTS["normal"]), names)
        for s in samples
    ]
    pictures = [str(sample.images[0]) for sample in samples]
    result = {}
    for length in CAPTION_REQUESTS:
        replies = vlm.caption([sample.images[0] for sample in samples], length, checked=checked)
        rows = []  # of each caption: objects named, of these there, objects there, of these named
        for reply, truth in zip(replies, truths, strict=True):
            if not isinstance(reply, Answer):
                raise reply
            things = tuple(Thing(t.noun, t.colour, "", None, NOWHERE) for t in truth for _ in range(t.count))
            said = hallucinated(reply.text, Scene(things, "white", None), names)
            mentioned = {(t.colour, t.noun) for t in named_things(reply.text, names)}
            found = sum((thing.colour, thing.noun) in mentioned for thing in things)
            rows.append((said[0], said[0] - said[1], len(things), found))
        named, true, there, mentions = zip(*rows, strict=True)
        share = ratio(true, named, pictures)
        recall = ratio(mentions, there, pictures).value
        result[length] = CaptionTruth(sum(named), share.value, share.low, share.high, recall)
    return result
