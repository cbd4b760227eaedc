"""The answer normalisations of VQAv2 and TextVQA.

VQAv2: Antol et al. 2015 (arXiv 1505.00468) and the rules at visualqa.org/evaluation; TextVQA: Singh et al. 2019
(arXiv 1904.08920), whose evaluator reads answers a little differently. Where the official programs do something odd,
so does this, since scores are compared to four decimals.
"""

from __future__ import annotations

import re
from typing import Final

PUNCTUATION: Final = ';/[]"{}()=+\\_-><@`,?!'
ARTICLES: Final = frozenset(("a", "an", "the"))
NUMBERS: Final = {
    word: str(number)
    for number, word in enumerate(
        ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    )
} | {"none": "0"}
_COMMA_IN_NUMBER: Final = re.compile(r"\d,\d")
# Every full stop that no digit follows. Only the first 32 of a text: the official programs pass a flag of that value
# where the count belongs.
_FULL_STOP: Final = re.compile(r"\.(?!\d)")
_FULL_STOPS_AT_MOST: Final = 32

# Words that annotators type without one of their apostrophes.
_CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock
oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's
they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's where'd
where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've y'all
y'all'll y'all'd've you'd you'd've you'll you're you've
"""


def _without_one_apostrophe(words: str) -> dict[str, str]:
    found = {}
    for word in words.split():
        for at, character in enumerate(word):
            if character == "'":
                found[word[:at] + word[at + 1 :]] = word
    return found


# The last one goes the other way in the official list.
CONTRACTIONS: Final = _without_one_apostrophe(_CONTRACTIONS) | {"somebody'd": "somebodyd"}


def stripped(answer: str) -> str:
    """Line ends and tabs as blanks, none around the text: what VQAv2 does to every answer."""
    return answer.replace("\n", " ").replace("\t", " ").strip()


def vqa_normalised(answer: str) -> str:
    """A `stripped` answer without punctuation and articles, in lower case, numbers as digits, apostrophes in place."""
    return _words(_without_punctuation(answer))


def textvqa_normalised(answer: str) -> str:
    """An answer as TextVQA's evaluator reads it: a possessive is a word of its own, before all else."""
    text = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return _words(_without_punctuation(stripped(text)))


def _without_punctuation(text: str) -> str:
    """A mark next to a blank goes; between other characters it becomes a blank, unless the text has a 1,000."""
    joined = _COMMA_IN_NUMBER.search(text) is not None
    result = text
    for mark in PUNCTUATION:
        result = result.replace(mark, "" if joined or f"{mark} " in text or f" {mark}" in text else " ")
    return _FULL_STOP.sub("", result, count=_FULL_STOPS_AT_MOST)


def _words(text: str) -> str:
    numbered = (NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in numbered if word not in ARTICLES)


def plain(answer: str) -> str:
    """Lower case, without blanks around it and without the punctuation that ends a sentence."""
    return answer.strip().lower().rstrip(".?!")
