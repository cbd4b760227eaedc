"""Captions that the model itself confirms: what it does not find when it is asked for it is called "something".

A caption is written in one go, and names things in passing that the same model denies when it is asked about them alone. So
of everything that a caption names three opinions are heard: how likely its words were, whether it is there ("Is there a
cat?"), and whether there are enough ("How many cats are there?"). The mean of the three probabilities tells better than any
of them what is there (on mini's calibration scenes; figures of the others in docs/mini.md). Of a caption whose form the
caller gave, the first opinion is not the model's: the other two decide. After hallucination correction
with a second model (Woodpecker: Yin et al. 2023, arXiv 2310.16045), here with the model as its own judge.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from statistics import fmean
from typing import TYPE_CHECKING, Any

from projector.data.scene_grammar import NUMBERS, is_plural, plural, singular, with_article
from projector.data.scene_vocabulary import MATERIALS, SIZES
from vision_lm.answer import Answer
from vision_lm.noun_phrases import NounPhrase, noun_phrases
from vision_lm.pictures import Pictures
from vision_lm.pointing import is_point
from vision_lm.prompts import Turn
from vision_lm.support import likelihood

if TYPE_CHECKING:
    from vision_lm.answerer import Answerer, Reply, Task
    from vision_lm.images import ImageSource

CONFIRMED = 0.82  # the mean of the three: on mini's calibration scenes 96% of what has so much is there
DOUBTFUL = 0.5  # below, "perhaps" would be too much
POINTED = 16  # tokens of an opinion that points first: more things than these nobody counts
TOP = 12  # likeliest first words of an opinion: yes and no, and every number
_DEFINITE = {
    "the",
    "this",
    "that",
    "these",
    "those",
    "his",
    "her",
    "its",
    "their",
    "another",
    "each",
    "every",
}
_IN_PASSING = {*SIZES, *MATERIALS}
_NUMBERS = {word: number for number, word in enumerate(NUMBERS)}
_OF = re.compile(r" of (?:an? )?[\w'’-]+")
_HEDGED = re.compile(r"\b(perhaps|may|might|maybe)\b", re.IGNORECASE)
_SENTENCE = re.compile(r"[^.!?]*[.!?]?\s*")


@dataclass(frozen=True)
class Mention:
    """One thing that a caption names."""

    phrase: NounPhrase
    noun: str  # without sizes and patterns, with what it is of: what is asked about
    end: int  # of all that, in the text

    @property
    def definite(self) -> bool:
        """Points back at something that was named before."""
        return bool(self.phrase.opening) and self.phrase.opening[0] in _DEFINITE

    @property
    def number(self) -> int:
        for word in self.phrase.opening:
            if word.isdigit() or word in _NUMBERS:
                return int(word) if word.isdigit() else _NUMBERS[word]
        return 1

    @property
    def questions(self) -> tuple[str, str]:
        """Two opinions: whether it is there, and how many there are."""
        one = singular(self.noun) if self.number > 1 else self.noun
        there = f"{'Are' if is_plural(one) else 'Is'} there {with_article(one)}?"
        return there, f"How many {plural(self.noun)} are there?"


@dataclass(frozen=True)
class Opinions:
    """What the model says of one mention."""

    likely: float | None  # 0 to 1: its words in the caption; None where they were not the model's own choice
    there: float  # 0 to 1: yes
    many: Mapping[int, float]  # the probability of each number

    def belief(self, number: int) -> float:
        """0 to 1: that there are at least so many."""
        total = sum(self.many.values())
        enough = sum(one for count, one in self.many.items() if count >= number)
        heard = (self.likely, self.there, enough / total if total else 0.0)
        return fmean(one for one in heard if one is not None)


class Check:
    """A caption's second look: what the model is asked about it, and what its answers leave of it."""

    def __init__(self, vlm: Answerer, image: Any, caption: Answer, *, forced: bool = False) -> None:
        """`image`: whatever a turn may show; the one that was described. `forced`: the caption had a given form."""
        self._vlm, self._caption, self._forced = vlm, caption, forced
        self._mentions = _mentions(caption.text)
        questions = [question for one in self._mentions for question in one.questions]
        self.conversations = [[Turn(question, (image,))] for question in questions]

    def corrected(self, replies: Sequence[Reply]) -> Answer:
        """The caption with what is not confirmed taken back. `replies`: to the conversations, each by `first_word`.

        Raises the error of a reply that is one.
        """
        spans = self._vlm.writer.spans(self._caption.tokens)
        words = (_first_words(self._vlm, reply) for reply in replies)
        opinions = []
        for one in self._mentions:
            # Words of a given form are as unlikely as the form is unusual; a model that points could not point in them.
            likely = None if self._forced else likelihood(one.phrase, spans, self._caption.token_logprobs)
            opinions.append(Opinions(likely, _yes(next(words)), _numbers(next(words))))
        return _corrected(self._caption, self._mentions, opinions)


def first_word(vlm: Answerer) -> Task:
    """How the answers of a second look are written: of each the likeliest first words are enough, after what it points at."""
    tokens = 1 if vlm.config.prompt.points is None else POINTED
    return vlm.task(tokens, {"top_logprobs": TOP})


def checked(
    vlm: Answerer,
    images: Sequence[ImageSource],
    captions: Sequence[Answer],
    pictures: Pictures,
    *,
    forced: bool = False,
) -> list[Answer]:
    """Each picture's caption with what is not confirmed taken back. Raises RequestError and ImageError.

    Costs the first word of two answers for each thing that is named; the picture itself is computed once.
    """
    checks = [Check(vlm, *pair, forced=forced) for pair in zip(images, captions, strict=True)]
    asked = [one for check in checks for one in check.conversations]
    replies = iter(vlm.replies(asked, first_word(vlm), pictures))
    return [check.corrected(list(islice(replies, len(check.conversations)))) for check in checks]


def _first_words(vlm: Answerer, reply: Reply) -> list[tuple[str, float]]:
    """The likeliest first words of an answer, with their probabilities."""
    if not isinstance(reply, Answer):
        raise reply
    points = vlm.config.prompt.points
    after = (
        top
        for token, top in zip(reply.tokens, reply.top_logprobs, strict=True)
        if not is_point(token, points)
    )
    likeliest = next(after, ())
    return [(vlm.prompts.decode([token]).strip().lower(), math.exp(logprob)) for token, logprob in likeliest]


def _yes(words: Sequence[tuple[str, float]]) -> float:
    yes, no = (sum(p for word, p in words if word == wanted) for wanted in ("yes", "no"))
    return yes / (yes + no) if yes + no else 0.0


def _numbers(words: Sequence[tuple[str, float]]) -> dict[int, float]:
    """ "2" and "two" are one number."""
    found: dict[int, float] = {}
    for word, p in words:
        if word.isdigit() or word in _NUMBERS:
            number = int(word) if word.isdigit() else _NUMBERS[word]
            found[number] = found.get(number, 0.0) + p
    return found


def _mentions(text: str) -> list[Mention]:
    found: list[Mention] = []
    for phrase in noun_phrases(text):
        if found and phrase.begin < found[-1].end:
            continue  # "oranges" of "a bowl of oranges"
        words = [word for word in phrase.text.split(" ") if word.lower() not in _IN_PASSING]
        of = _OF.match(text, phrase.end)
        noun = (" ".join(words) or phrase.text) + (of.group() if of else "")
        found.append(Mention(phrase, noun, of.end() if of else phrase.end))
    return found


def _corrected(caption: Answer, mentions: Sequence[Mention], opinions: Sequence[Opinions]) -> Answer:
    """The caption with "something" where too little was found, and without sentences about what is not there."""
    text = caption.text
    said: Counter[str] = Counter()  # so far
    unconfirmed: list[NounPhrase] = []
    edits: list[tuple[int, int, str]] = []
    for one, its in zip(mentions, opinions, strict=True):
        phrase, name = one.phrase, plural(one.noun)
        number = 1 if one.definite else said[name] + one.number
        hedged = _HEDGED.search(text, *_sentence(text, phrase.start)) is not None
        if its.belief(number) >= (DOUBTFUL if hedged else CONFIRMED):
            said[name] = max(said[name], number)
            continue
        unconfirmed.append(phrase)
        if one.definite:
            edits.append((*_sentence(text, phrase.start), ""))
        elif one.number > 1 and its.belief(said[name] + 1) >= CONFIRMED:  # some, but not as many
            edits.append((phrase.begin, phrase.start, "some "))
        else:
            edits.append((phrase.begin, one.end, "some things" if one.number > 1 else "something"))
    if not unconfirmed:
        return caption
    names = tuple(one.text for one in unconfirmed)
    if len(mentions) == mentions[0].number == 1 and opinions[0].belief(1) >= DOUBTFUL:
        text = f"Perhaps {text[:1].lower()}{text[1:]}"
        return replace(caption, text=text, unconfirmed=names, unanswerable=True)
    if len(unconfirmed) == len(mentions) > 1:
        return replace(caption, text="Several things.", unconfirmed=names, unanswerable=True)
    unanswerable = len(unconfirmed) == len(mentions)
    # Of "The Eiffel Tower at night." nothing is left where the tower is not confirmed.
    text = _edited(text, edits) or "Something."
    return replace(caption, text=text, unconfirmed=names, unanswerable=unanswerable)


def _sentence(text: str, at: int) -> tuple[int, int]:
    return next(one.span() for one in _SENTENCE.finditer(text) if one.start() <= at < one.end())


def _edited(text: str, edits: Sequence[tuple[int, int, str]]) -> str:
    """From the back, so that places stay right; what lies within a sentence that goes, goes with it."""
    gone = [(start, end) for start, end, words in edits if not words]
    for start, end, words in sorted(set(edits), reverse=True):
        if words and any(first <= start < last for first, last in gone):
            continue
        begins_sentence = start == 0 or text[:start].rstrip().endswith((".", "!", "?"))
        text = text[:start] + (words[:1].upper() + words[1:] if begins_sentence else words) + text[end:]
    return text.strip()
