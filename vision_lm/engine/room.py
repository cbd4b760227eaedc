"""How long a prompt and its answer may be."""

from __future__ import annotations

from dataclasses import dataclass

from vision_lm.engine.sampling import Sampling
from vision_lm.errors import RequestError


@dataclass(frozen=True)
class Room:
    """In tokens: what the model can tell apart, and what its cache of keys and values holds."""

    positions: int
    cache_tokens: int

    def check(self, length: int, sampling: Sampling) -> None:
        """Raise RequestError if a prompt of `length` tokens and its answer do not fit."""
        if length < 1:
            raise RequestError("the prompt is empty; give at least one token")
        for room, what in (
            (self.positions, "the model's {:,} positions"),
            (self.cache_tokens, "a cache of {:,}"),
        ):
            if length + sampling.max_tokens > room:
                raise RequestError(
                    f"the prompt has {length:,} tokens, and max_tokens {sampling.max_tokens:,} of "
                    f"{what.format(room)} leave room for {max(room - sampling.max_tokens, 0):,}; "
                    "shorten the conversation, give fewer images, or lower max_tokens"
                )
