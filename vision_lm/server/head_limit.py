"""A limit that uvicorn has not: how long a connection may take over a request's head, or open and say nothing."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.auto import AutoHTTPProtocol


def head_limited(seconds: float) -> type[asyncio.Protocol]:
    """uvicorn's protocol of a connection, which it closes `seconds` after it was opened or a head's first byte came.

    The head of a request must be complete by then. What follows it has the limits of the app, and an idle connection
    between two requests uvicorn's own.
    """

    class HeadLimited(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
        _clock: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop()
            super().connection_lost(exc)

        def _watch(self) -> None:
            """A clock that runs is left alone: bytes that come one at a time gain nothing."""
            if self.cycle is not None and not self.cycle.response_complete:
                self._stop()  # the head is there, and the app at work
            elif self._clock is None:
                self._clock = self.loop.call_later(seconds, self.transport.close)

        def _stop(self) -> None:
            if self._clock is not None:
                self._clock.cancel()
                self._clock = None

    return HeadLimited
