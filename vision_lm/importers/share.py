"""How much of a long import is done, said now and then."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

EVERY = 2.0  # seconds: what takes less says nothing


@dataclass
class Share:
    """Says "40%, 2.2 of 5.6 GB" when some seconds have passed since it last did, and what comes is worth a hundredth more."""

    whole: int  # bytes
    say: Callable[[str], None]
    done: int = 0  # bytes
    _percent: int = 0  # last said
    _when: float = field(default_factory=time.monotonic)

    def add(self, size: int) -> None:
        """So many bytes are about to follow those of before."""
        percent = 100 * self.done // max(self.whole, 1)
        if percent > self._percent and time.monotonic() - self._when >= EVERY:
            self.say(f"{percent}%, {self.done / 1e9:,.1f} of {self.whole / 1e9:,.1f} GB")
            self._percent, self._when = percent, time.monotonic()
        self.done += size
