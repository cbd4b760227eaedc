"""When a generation has said enough: cycles of tokens."""

from __future__ import annotations

from typing import Literal

FinishReason = Literal["stop", "length", "repetition"]

LONGEST_CYCLE = 64  # tokens
COPIES = 3  # of one cycle in a row
REPEATED_TOKENS = 16  # and the copies after the first are so long together: "2, 2, 2" is an answer


class Cycles:
    """Watches tokens, or words, one by one for an end that repeats itself, such as "a b c a b c a b c"."""

    def __init__(self, least: int = REPEATED_TOKENS) -> None:
        """`least`: how many tokens have to repeat before it is a loop."""
        self._least = least
        self._tokens: list[int | str] = []
        # runs[p]: how many tokens at the end equal the one p places before them.
        self._runs = [0] * (LONGEST_CYCLE + 1)

    def push(self, token: int | str) -> None:
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
            run >= max((COPIES - 1) * period, self._least) for period, run in enumerate(self._runs) if run
        )
