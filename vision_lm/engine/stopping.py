"""When a generation has said enough: cycles of tokens, and stop strings."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from typing import Literal

FinishReason = Literal["stop", "length", "repetition", "cancelled"]

LONGEST_CYCLE = 64  # tokens
COPIES = 3  # of one cycle in a row
REPEATED_TOKENS = 16  # and the copies after the first are so long together: "2, 2, 2" is an answer


class Cycles:
    """Watches tokens, or words, one by one for an end that repeats itself, such as "a b c a b c a b c"."""

    def __init__(self, least: int = REPEATED_TOKENS) -> None:
        """`least`: how many tokens have to repeat before it is a loop."""
        self._least = least
        self._places: dict[int | str, list[int]] = {}  # of each token
        self._count = 0
        self._runs: dict[
            int, int
        ] = {}  # by period p: how many tokens at the end equal the one p places before

    def push(self, token: int | str) -> None:
        places = self._places.setdefault(token, [])
        runs = {}
        for place in reversed(places):
            period = self._count - place
            if period > LONGEST_CYCLE:
                break
            runs[period] = self._runs.get(period, 0) + 1
        self._runs = runs
        places.append(self._count)
        self._count += 1

    @property
    def repeated(self) -> int:
        """How many tokens at the end repeat what stands before them: what a loop found later would drop."""
        return max(self._runs.values(), default=0)

    @property
    def looping(self) -> bool:
        """True once some cycle stands COPIES times in a row and is long enough to be no answer."""
        if not self._runs:  # of most tokens
            return False
        return any(run >= max((COPIES - 1) * period, self._least) for period, run in self._runs.items())


class StopStrings:
    """Watches the text of an answer, token by token, for one of a few stop strings.

    The first stop string to be complete counts, and of several that end together the one that began first; so
    the text is cut at the same place however it is split into tokens. Places are counted in the characters of
    `decode(tokens)`.
    """

    def __init__(self, stop: Sequence[str], decode: Callable[[Sequence[int]], str]) -> None:
        self._stop, self._decode = tuple(stop), decode
        self._longest = max(map(len, self._stop), default=0)
        self._text = ""  # whole characters; the bytes of one that is still to come are left out
        self._starts: list[int] = []  # for each token, where its text begins
        self._ends: list[int] = []  # and where it ends, of those tokens whose last character is whole
        # Only the last few tokens are decoded anew: those of the context, whose text is settled, and those after it.
        self._window: list[int] = []
        self._context_tokens = self._context = 0  # how many they are, and how many characters
        self.cut: int | None = None  # where the stop string begins, once one is found: the text ends there

    def push(self, token: int) -> None:
        """Take the next token. After a stop string is found, give no more."""
        known = len(self._text)
        self._starts.append(known)
        self._window.append(token)
        window = self._decode(self._window)
        whole = window.rstrip("\ufffd")  # which stands for bytes that are no character yet, or never will be
        settled = self._ends[-1] if self._ends else 0
        self._text = self._text[:settled] + whole[self._context :]
        if whole == window:
            self._ends += [len(self._text)] * (len(self._starts) - len(self._ends))
            self._window = self._window[self._context_tokens :]
            self._context_tokens, self._context = len(self._window), len(self._decode(self._window))
        self.cut = self._find(max(known - self._longest + 1, 0))

    def _find(self, start: int) -> int | None:
        places = [(self._text.find(stop, start), stop) for stop in self._stop]
        found = [(place + len(stop), place) for place, stop in places if place >= 0]
        return min(found)[1] if found else None

    @property
    def text(self) -> str:
        """The text so far, without what comes from the stop string on."""
        return self._text[: self.cut]

    @property
    def certain(self) -> int:
        """How many characters stand whatever comes: an end that may yet become a stop string is held back."""
        if self.cut is not None:
            return self.cut
        for held in range(min(self._longest - 1, len(self._text)), 0, -1):
            end = self._text[-held:]
            if any(stop.startswith(end) for stop in self._stop):
                return len(self._text) - held
        return len(self._text)

    @property
    def tokens(self) -> int:
        """How many tokens `text` is made of. The last one may hold the beginning of the stop string as well."""
        if self.cut is None:
            return len(self._starts)
        return max(bisect_left(self._starts, self.cut), bisect_right(self._ends, self.cut))

    @property
    def certain_tokens(self) -> int:
        """How many tokens lie in the certain characters as a whole: those that a stream may give away."""
        return bisect_right(self._ends, self.certain)
