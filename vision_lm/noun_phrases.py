"""The things that a caption names, found by the words around them: no tagger, no language model, no vocabulary.

A noun phrase of a caption mostly begins with an article, a number or a possessive ("a red star", "two dogs"), or is a
bare plural behind "of", "and", "with" or a comma ("a bowl of oranges"). It ends before a word of grammar, a verb's
"-ing", or a mark. That is enough for captions; of other texts it finds less.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_OPENING = _words(
    "a an the this that these those his her its their some several many two three four five six seven eight nine ten"
    " eleven twelve another each every"
)
# Plurals without an s.
_PLURALS = _words("people children men women feet mice geese sheep fish")
_NOUNS_IN_ING = _words("ring king wing string building painting clothing lightning ceiling")
_LINKING = frozenset(("of", "and", "with", "or", "near", ","))
_CLOSING = _words(
    "is are was were be has have there it he she they which who that while as in on at by for from to into onto over under"
    " above below beside behind between against through around along across next left right near with and or of up down"
    " out off front not no one both all than very looks look says say reads read sits sit stands stand lies lie"
    " shows show contains contain fills fill"
    " perhaps"
)
# What a picture itself and its parts are called: naming them claims nothing that could be missing.
_ABOUT_THE_PICTURE = _words(
    "image picture photo photograph drawing background foreground scene top bottom middle center centre side left right"
    " corner front back edge view group kind one other others top-left word thing things object objects"
)
_WORD = re.compile(r"\w+(?:[-'’]\w+)*|[^\w\s]")


@dataclass(frozen=True)
class NounPhrase:
    """Words of a text that name a thing, without the article or number before them."""

    text: str
    start: int  # characters
    end: int
    opening: tuple[str, ...] = ()  # those words, in lower case; none before a bare plural
    begin: int = 0  # where the first of them starts


def noun_phrases(text: str) -> list[NounPhrase]:
    """In the order of the text. Quoted text is what is written in the picture, no thing."""
    unquoted = re.sub(r'"[^"]*"|“[^”]*”', lambda quoted: '"' * len(quoted.group()), text)
    places = [match.span() for match in _WORD.finditer(unquoted)]
    words = [unquoted[start:end].lower() for start, end in places]
    found, at = [], 0
    while at < len(words):
        opens = _opens(words[at])
        if not opens and words[at] not in _LINKING:
            at += 1
            continue
        first = at + 1
        while first < len(words) and _opens(words[first]):
            first, opens = first + 1, True
        last = first
        while last < len(words) and _belongs(words, last, last == first):
            last += 1
        if last > first and _names_a_thing(words[last - 1], opens):
            start, end = places[first][0], places[last - 1][1]
            before = [n for n in range(at, first) if _opens(words[n])]
            begin = places[before[0]][0] if before else start
            found.append(NounPhrase(text[start:end], start, end, tuple(words[n] for n in before), begin))
        at = max(last, at + 1)
    return found


def overlapping(spans: Sequence[tuple[int, int]], start: int, end: int) -> list[int]:
    """Which of these spans of a text have a character from `start` on and before `end`."""
    return [n for n, (first, last) in enumerate(spans) if first < end and last > start]


def _opens(word: str) -> bool:
    return word in _OPENING or word.isdigit()


def _names_a_thing(noun: str, opened: bool) -> bool:
    """Without an article or a number only a plural does: "of oranges", but not "with grass" or "and white"."""
    plural = noun.endswith("s") or noun in _PLURALS
    return noun not in _ABOUT_THE_PICTURE and (opened or plural)


def _belongs(words: Sequence[str], at: int, first: bool) -> bool:
    """Whether a word goes on a noun phrase. A verb's "-ing" may begin one ("a flying bird") or stand before its noun
    ("a small smiling face"), but ends it before a grammatical word: "a man riding a wave"."""
    word = words[at]
    if not _goes_on(word):
        return False
    if first or not word.endswith("ing") or word in _NOUNS_IN_ING:
        return True
    return at + 1 < len(words) and _goes_on(words[at + 1])


def _goes_on(word: str) -> bool:
    return word[0].isalnum() and word not in _CLOSING and not _opens(word)
