"""When a generation has said enough: cycles of tokens, and the sentences of a caption."""

from __future__ import annotations

import re
from typing import Literal

FinishReason = Literal["stop", "length", "repetition"]

LONGEST_CYCLE = 64  # tokens
COPIES = 3  # of one cycle in a row
REPEATED_TOKENS = 16  # and the copies after the first are so long together: "2, 2, 2" is an answer

# A full stop ends a sentence only before a blank or at the end: "3.5" and "1.1.1.1" go on.
_SENTENCE = re.compile(r"\s*(.+?[.!?]+[\"')\]]*)(?=\s|\Z)", re.DOTALL)


class Cycles:
    """Watches tokens one by one for an end that repeats itself, such as "a b c a b c a b c"."""

    def __init__(self) -> None:
        self._tokens: list[int] = []
        # runs[p]: how many tokens at the end equal the one p places before them.
        self._runs = [0] * (LONGEST_CYCLE + 1)

    def push(self, token: int) -> None:
        tokens, runs = self._tokens, self._runs
        for period in range(1, min(len(tokens), LONGEST_CYCLE) + 1):
            runs[period] = runs[period] + 1 if tokens[-period] == token else 0
        tokens.append(token)

    @property
    def repeated(self) -> int:
        """How many tokens at the end repeat what stands before them: what a loop found later would drop."""
        return max(self._runs)

    @property
    def looping(self) -> bool:
        """True once some cycle stands COPIES times in a row and is long enough to be no answer."""
        return any(
            run >= max((COPIES - 1) * period, REPEATED_TOKENS) for period, run in enumerate(self._runs) if run
        )


def sentences_end(text: str, *, finished: bool) -> tuple[int, bool]:
    """Where the text's last sentence ends, 0 if none does, and whether the next one says again what was said.

    A repeated sentence and all behind it does not count. Unless the text is `finished`, a full stop at its very
    end does not count either: it may be the point of a number.
    """
    seen: set[str] = set()
    end, previous = 0, ""
    for match in _SENTENCE.finditer(text):
        if not finished and match.end() == len(text):
            break
        sentence = " ".join(match.group(1).casefold().split())
        # One word, as in "No. 5. No. 6.", may come again; the same one twice in a row may not.
        if sentence == previous or (sentence in seen and " " in sentence):
            return end, True
        seen.add(sentence)
        end, previous = match.end(), sentence
    return end, False


def cut_caption(text: str, reason: FinishReason) -> tuple[str, FinishReason]:
    """A caption without repeated sentences; if it did not stop by itself, it ends at its last sentence, if any."""
    end, repeats = sentences_end(text, finished=True)
    if repeats:
        return text[:end], "repetition"
    return (text[:end] if end and reason != "stop" else text), reason
