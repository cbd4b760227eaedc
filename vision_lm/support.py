"""Which of the things that a caption names come from the picture, and which from habit.

The caption's tokens are said again, word for word (teacher forcing), about a picture of nothing: the same picture's mean
colour all over. A thing that is in the picture is much likelier with it than without; a thing that the language model
would name anyway is not. After image grounding by contrast (VCD: Leng et al. 2023, arXiv 2311.16922), used to measure
and not to change what is said. With the picture nothing is computed again: the answer has its log-probabilities.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from vision_lm.answer import Answer, Support
from vision_lm.engine import Prompt, Ticket
from vision_lm.explain import blank
from vision_lm.noun_phrases import NounPhrase, noun_phrases, overlapping
from vision_lm.pictures import FittedPicture, Pictures
from vision_lm.prompts import Turn

if TYPE_CHECKING:
    from vision_lm.answerer import Answerer


AT_ONCE = 16  # answers said again at once: others' requests get their turn between them


def with_support(
    vlm: Answerer, turns: Sequence[Sequence[Turn]], answers: Sequence[Answer], pictures: Pictures
) -> list[Answer]:
    """Each conversation's answer with the support of what it names, by the picture of its last question.

    Costs the decoding of as many answers again. Raises RequestError and ImageError.
    """
    found: list[Answer] = []
    for start in range(0, len(answers), AT_ONCE):
        some = answers[start : start + AT_ONCE]
        tickets = [_said_unseen(vlm, *pair, pictures) for pair in zip(turns[start:], some, strict=False)]
        for answer, ticket in zip(some, tickets, strict=True):
            unseen = ticket.result().logprobs if ticket else ()
            found.append(replace(answer, support=tuple(_supports(vlm, answer, unseen)) if ticket else ()))
    return found


def _said_unseen(vlm: Answerer, turns: Sequence[Turn], answer: Answer, pictures: Pictures) -> Ticket | None:
    """The answer, said again about a picture of nothing; None where it names no thing, or there is no picture."""
    prompt = vlm.prompts.build(turns)
    if not answer.tokens or not prompt.images or not noun_phrases(answer.text):
        return None
    opened = [pictures.open(image) for image in prompt.images]
    shown = opened[-1]
    assert isinstance(shown, FittedPicture)  # one that is encoded already has no pixels to take away
    images = [*opened[:-1], blank(shown.ready(vlm.config.vision))]
    return vlm.engine.submit(Prompt(prompt.ids, images), vlm.given_task(answer.tokens).sampling)


def _supports(vlm: Answerer, answer: Answer, unseen: Sequence[float]) -> Iterator[Support]:
    spans = vlm.writer.spans(answer.tokens)
    for one in noun_phrases(answer.text):
        seen_by, unseen_by = (likelihood(one, spans, logs) for logs in (answer.token_logprobs, unseen))
        yield Support(one.text, one.start, one.end, seen_by, unseen_by)


def likelihood(phrase: NounPhrase, spans: Sequence[tuple[int, int]], logprobs: Sequence[float]) -> float:
    """The probability of these words given those before them. `spans`: of the answer's tokens."""
    return math.exp(sum(logprobs[n] for n in overlapping(spans, phrase.start, phrase.end)))
