"""A caller's end of one request: its tokens while they come, its result, and the way to cancel it."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from vision_lm.engine.request import Generation, Token


class Mailbox:
    """What the engine's loop writes and the caller reads: tokens in order, then how it ended. See `deliver`."""

    def __init__(self) -> None:
        self.tokens: deque[Token] = deque()
        self.generation: Generation | None = None
        self.error: BaseException | None = None
        self.ended = threading.Event()
        self.reader: Reader | None = None  # of asyncio
        self._news = threading.Condition()

    def put(self, tokens: list[Token]) -> None:
        self.tokens.extend(tokens)

    def end(self, outcome: Generation | BaseException) -> None:
        if isinstance(outcome, BaseException):
            self.error = outcome
        else:
            self.generation = outcome
        self.ended.set()

    def wait(self) -> None:
        """Until there are tokens to read, or no more will come."""
        with self._news:
            self._news.wait_for(lambda: self.tokens or self.ended.is_set())

    def tell(self) -> None:
        """Those that wait in threads."""
        with self._news:
            self._news.notify_all()


@dataclass(frozen=True)
class Reader:
    """One that waits in an event loop."""

    loop: asyncio.AbstractEventLoop
    news: asyncio.Event


def deliver(mailboxes: Iterable[Mailbox]) -> None:
    """Tell all readers that something has come.

    Those of one event loop at once: waking it is a system call, after which the engine would wait for Python's lock
    while the loop is at work already.
    """
    loops: dict[asyncio.AbstractEventLoop, list[asyncio.Event]] = {}
    for mailbox in mailboxes:
        mailbox.tell()
        if reader := mailbox.reader:  # it may leave meanwhile
            loops.setdefault(reader.loop, []).append(reader.news)
    for loop, news in loops.items():
        with suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(_set_all, news)


def _set_all(events: list[asyncio.Event]) -> None:
    for event in events:
        event.set()


class Ticket:
    """One submitted request. Iterate over it (`for` or `async for`) for its tokens; `result()` or `await` for all.

    A ticket that nobody holds any more is cancelled: nobody could read it.
    """

    def __init__(self, mailbox: Mailbox, cancel: Callable[[], None]) -> None:
        self.mailbox = mailbox
        self.cancel = weakref.finalize(self, cancel)  # called once: by hand, or when the ticket is gone
        self.cancel.atexit = False

    def result(self) -> Generation:
        """Wait for the end. Raises what ended the request early; cancels it if the wait itself is interrupted."""
        try:
            self.mailbox.ended.wait()
        except BaseException:  # an interrupt from the keyboard
            self.cancel()
            raise
        return self._outcome()

    def __iter__(self) -> Generator[Token, None, Generation]:
        """The tokens as soon as they are certain; the generator returns the whole. Closing it cancels."""
        mailbox = self.mailbox
        try:
            while True:
                mailbox.wait()
                while mailbox.tokens:
                    yield mailbox.tokens.popleft()
                if mailbox.ended.is_set() and not mailbox.tokens:
                    return self._outcome()
        finally:
            self.cancel()

    async def __aiter__(self) -> AsyncIterator[Token]:
        """The same for asyncio; afterwards `await` the ticket for the whole."""
        mailbox = self.mailbox
        with self._reading() as news:
            # Asked in this order: the last tokens come before the end.
            while not mailbox.ended.is_set() or mailbox.tokens:
                while mailbox.tokens:
                    yield mailbox.tokens.popleft()
                if not mailbox.ended.is_set():
                    await news.wait()
                    news.clear()
        self._outcome()

    def __await__(self) -> Generator[Any, None, Generation]:
        return self._finished().__await__()

    async def _finished(self) -> Generation:
        with self._reading() as news:
            while not self.mailbox.ended.is_set():
                await news.wait()
                news.clear()
        return self._outcome()

    @contextmanager
    def _reading(self) -> Iterator[asyncio.Event]:
        """An event that is set whenever something comes; a reader that leaves before the end cancels."""
        news = asyncio.Event()
        self.mailbox.reader = Reader(asyncio.get_running_loop(), news)
        try:
            yield news
        finally:
            self.mailbox.reader = None
            self.cancel()

    def _outcome(self) -> Generation:
        if self.mailbox.error is not None:
            raise self.mailbox.error
        assert self.mailbox.generation is not None
        return self.mailbox.generation
