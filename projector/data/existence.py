"""Whether something is in a picture of one thing: the question in the wordings that people use."""

from __future__ import annotations

import random

from projector.data.samples import QA
from projector.data.scene_grammar import with_article
from projector.data.scene_vocabulary import yes_or_no

_FORMS = (
    "Is there {a}?",
    "Is there {a} in the picture?",
    "is there {a} in the image",
    "Can you see {a}?",
    "Does the picture show {a}?",
    "Is this {a}?",
)


def exists(noun: str, there: bool, rng: random.Random) -> QA:
    return QA(rng.choice(_FORMS).format(a=with_article(noun)), yes_or_no(there), "existence")
