"""A caption's second look in the service: a few questions under way at a time, so that they are counted in the queue."""

from __future__ import annotations

from typing import Any

from vision_lm.answer import Answer
from vision_lm.answerer import Answerer
from vision_lm.checking import Check, first_word
from vision_lm.pictures import Pictures
from vision_lm.server.service import Service

AT_ONCE = 8  # questions: four things that a caption names, which is most captions


async def confirmed(
    service: Service, vlm: Answerer, image: Any, caption: Answer, pictures: Pictures
) -> Answer:
    """The caption with what the model does not find taken back. Cancelled, it leaves no question behind.

    `pictures` has read the image for the caption: it is not read again. Raises RequestError.
    """
    check, task = Check(vlm, image, caption), first_word(vlm)
    replies: list[Answer] = []
    for start in range(0, len(check.conversations), AT_ONCE):
        some = check.conversations[start : start + AT_ONCE]
        waiting = await service.submit(vlm, [(turns, task) for turns in some], pictures)
        try:
            replies += [await one.whole() for one in waiting]
        finally:
            for one in waiting:
                one.cancel()
    return check.corrected(replies)
