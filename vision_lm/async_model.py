"""A request that is under way, read with asyncio: the whole answer, or its pieces while it is written."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

from vision_lm.answer import Answer, Pieces
from vision_lm.answerer import Pending
from vision_lm.engine import Token


@dataclass(frozen=True)
class Piece:
    """A part of an answer's text, and the tokens that came since the part before it."""

    text: str
    tokens: tuple[Token, ...]


class AsyncAnswer:
    """The answer to one `Answerer.submit`. Read it once: `await` `whole()`, or iterate over `pieces()`."""

    def __init__(self, pending: Pending) -> None:
        self._pending = pending
        self.prompt_tokens = pending.prompt_tokens
        self.first_token: float | None = None  # when it came, by time.perf_counter()
        self.answer: Answer | None = None  # once it is complete

    def cancel(self) -> None:
        """The rest is never generated. After the end it does nothing."""
        self._pending.ticket.cancel()

    async def whole(self) -> Answer:
        """Wait for the end. Raises what ended the request early."""
        async for _ in self._tokens():
            pass
        generation = await self._pending.ticket
        self.answer = self._pending.writer.whole(generation, caption=self._pending.caption)
        return self.answer

    async def pieces(self) -> AsyncIterator[Piece]:
        """The text in pieces, a caption by sentences; joined they are the text of `answer`, set at the end."""
        pieces = Pieces(self._pending.writer, caption=self._pending.caption)
        count, since = 0, list[Token]()
        async for token in self._tokens():
            count += 1
            since.append(token)
            if text := pieces.push(token):
                yield Piece(text, tuple(since))
                since.clear()
        generation = await self._pending.ticket
        text, self.answer = pieces.end(generation)
        tops = generation.tops or ((),) * len(generation.tokens)
        rest = list(zip(generation.tokens, generation.logprobs, tops, strict=True))[count:]
        since += [Token(*one) for one in rest]  # held back while they might have begun a stop string
        if text or since:
            yield Piece(text, tuple(since))

    async def _tokens(self) -> AsyncIterator[Token]:
        try:
            async for token in self._pending.ticket:
                self.first_token = self.first_token or time.perf_counter()
                yield token
        finally:
            self.cancel()  # a reader that left in the middle
