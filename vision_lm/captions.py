"""Where a caption ends: at the end of a sentence, with nothing in it said again and again."""

from __future__ import annotations

import re

from vision_lm.engine.stopping import Cycles, FinishReason

REPEATED_WORDS = (
    3  # words that must repeat to count as a loop: in a caption even "a dog, a dog, a dog" is one
)

# A full stop ends a sentence only before a blank or at the end: "3.5" and "1.1.1.1" go on.
_SENTENCE = re.compile(r"\s*(.+?[.!?]+[\"')\]]*)(?=\s|\Z)", re.DOTALL)
_CLOSED = re.compile(r"[.!?…。！？][\"')\]”’]*\Z")
# What begins a part of a sentence that the words before it can do without.
_PART = re.compile(
    r"\s*[,;:](?=\s|\Z)|\s+(?:(?:next|close|made)\s+)?(?:and|or|but|with|without|of|in|on|at|to|by|for|from|into|over"
    r"|under|near|behind|above|below|beside|between|against|through|that|which|while|who|where|as)(?=\s|\Z)"
)
# What no sentence ends with.
_DANGLING = re.compile(
    r"(?:\s+(?:a|(?i:and|or|but|with|of|an|the|its|their|his|while|(?:that|which|who)(?:\s+(?:is|are))?))|[\s,;:–—-])+\Z"
)


def sentences_end(text: str, *, finished: bool) -> tuple[int, bool]:
    """Where the text's last sentence ends, 0 if none does, and whether the next one says again what was said.

    A sentence that repeats another, or itself in a loop, does not count, nor does what is behind it. Unless the
    text is `finished`, a full stop at its very end does not count either: it may be the point of a number.
    """
    said: list[str] = []
    end = 0

    def repeats(sentence: str) -> bool:
        # One word, as in "No. 5. No. 6.", may come again; the same one twice in a row may not.
        again = said[-1:] == [sentence] or (sentence in said and " " in sentence)
        return again or _first_round(sentence) is not None

    for match in _SENTENCE.finditer(text):
        if not finished and match.end() == len(text):
            break
        sentence = _words(match.group(1))
        if repeats(sentence):
            return end, True
        said.append(sentence)
        end = match.end()
    return end, finished and repeats(_words(text[end:]))  # the rest: a sentence without its full stop


def cut_caption(text: str, reason: FinishReason) -> tuple[str, str, FinishReason]:
    """What a caption keeps of a text, the full stop to add where that ends no sentence, and why it ends there.

    It ends before the first repetition, and before a sentence that was cut off. If that leaves nothing, the
    first sentence is kept as far as it makes sense.
    """
    end, repeats = sentences_end(text, finished=True)
    reason = "repetition" if repeats else reason
    if end and reason != "stop":
        return text[:end], "", reason
    if repeats:
        text = text[: _first_round(text)]
    if reason != "stop":
        begun = [part for part in _PART.finditer(text) if part.start()]
        if reason == "repetition":  # a round ends anywhere, but with a whole word
            begun = [part for part in begun if part.end() == len(text)]
        text = text[: begun[-1].start()] if begun else text
    text = _DANGLING.sub("", text)
    return text, "." if text and not _CLOSED.search(text) else "", reason


def _words(sentence: str) -> str:
    """The sentence, however it is spaced, capitalised and ended."""
    return " ".join(sentence.casefold().split()).rstrip(".!?")


def _first_round(text: str) -> int | None:
    """If the words loop, where their first round ends. "And" and "or" do not count: "a dog, a dog and a dog"."""
    cycles, ends = Cycles(REPEATED_WORDS), []
    for match in re.finditer(r"\w(?:\S*\w)?", text):
        word = match.group().casefold()
        if word not in ("and", "or"):
            ends.append(match.end())
            cycles.push(word)
            if cycles.looping:
                return ends[-1 - cycles.repeated]
    return None
