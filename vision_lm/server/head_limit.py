"""Limits that uvicorn has not: how long a connection may take over a request's head, or open and say nothing, and how
large a head may be.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.auto import AutoHTTPProtocol

MAX_HEAD = 64 << 10  # bytes


def head_limited(seconds: float) -> type[asyncio.Protocol]:
    """uvicorn's protocol of a connection, which it closes `seconds` after it was opened or a head's first byte came.

    The head of a request must be complete by then, and have no more than MAX_HEAD bytes. What follows it has the limits of the
    app, and an idle connection between two requests uvicorn's own.
    """

    class HeadLimited(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
        _clock: asyncio.TimerHandle | None = None
        _head = 0  # bytes of a head that is not complete
        _body = 0  # bytes of bodies in what has just come

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            self._watch()

        def data_received(self, data: bytes) -> None:
            self._body = 0
            super().data_received(data)
            self._head += len(data) - self._body
            self._watch()
            if self._head > MAX_HEAD and hasattr(super(), "on_body"):  # h11 has a limit of its own
                self.transport.close()

        def on_body(self, body: bytes) -> None:
            """Also what still comes of a request that was refused: it is read, and no head."""
            self._body += len(body)
            super().on_body(body)

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop()
            super().connection_lost(exc)

        def _watch(self) -> None:
            """A clock that runs is left alone: bytes that come one at a time gain nothing."""
            if self.cycle is not None and not self.cycle.response_complete:
                self._head = 0
                self._stop()  # the head is there, and the app at work
            elif self._clock is None:
                self._clock = self.loop.call_later(seconds, self.transport.close)

        def _stop(self) -> None:
            if self._clock is not None:
                self._clock.cancel()
                self._clock = None

    return HeadLimited
