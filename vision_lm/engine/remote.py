"""An engine in another process, as this one sees it.

Python computes in one thread at a time, and a service's own work, reading requests and writing pieces of answers, would hold
up every step of an engine beside it. So vLLM has it, too (its V1 architecture). What goes over the pipes:

    there   (number, prompt, sampling) to submit, a number alone to cancel
    back    `News`: once a step, for all requests that something has come for
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from queue import SimpleQueue
from typing import IO, Any

from vision_lm.engine.album import Album
from vision_lm.engine.face import AnyEngine, Counts
from vision_lm.engine.grammar import Grammars
from vision_lm.engine.request import Generation, Prompt
from vision_lm.engine.room import Room
from vision_lm.engine.sampling import Sampling, Token
from vision_lm.engine.ticket import Mailbox, Ticket, deliver
from vision_lm.errors import EngineGoneError
from vision_lm.frames import receive, send

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Arrival:
    """What has come for one request: tokens, and at the end how it ended."""

    number: int
    tokens: Sequence[Token]
    outcome: Generation | BaseException | None = None


@dataclass(frozen=True)
class News:
    arrivals: Sequence[Arrival]
    counts: Counts


class RemoteEngine(AnyEngine):
    """Any thread may submit; one thread of this process reads what comes back."""

    def __init__(
        self,
        to_engine: IO[bytes],
        from_engine: IO[bytes],
        room: Room,
        counts: Counts,
        grammars: Grammars,
        pid: int,
        gone: Callable[[], None] = lambda: None,
    ) -> None:
        """`pid`: of the other process; `gone` is called when it has ended: from then on every request fails."""
        self.room, self.pid, self._counts, self._grammars, self._gone = room, pid, counts, grammars, gone
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        # Under the lock, of requests that have not ended. None: the engine is gone.
        self._mailboxes: dict[int, Mailbox] | None = {}
        # No lock: a ticket may be forgotten, and so cancelled, at any moment, in any thread.
        self._outbox: SimpleQueue[Any] = SimpleQueue()
        for work, pipe in ((self._write, to_engine), (self._read, from_engine)):
            threading.Thread(target=work, args=(pipe,), name="vision-lm engine's pipe", daemon=True).start()

    def submit(self, prompt: Prompt, sampling: Sampling) -> Ticket:
        """Queue a request. Raises RequestError before it is sent, EngineGoneError if nobody is there to compute."""
        self.check(len(prompt.ids), sampling)
        if sampling.constraint:
            self._grammars.matcher(sampling.constraint)  # raises for a form that cannot be followed
        number, mailbox = next(self._numbers), Mailbox()
        with self._lock:
            if self._mailboxes is None:
                raise EngineGoneError
            self._mailboxes[number] = mailbox
        self._outbox.put((number, prompt, sampling))

        def cancel() -> None:  # must not hold the ticket
            mailboxes = self._mailboxes  # none once the engine is gone
            if mailboxes and number in mailboxes:
                self._outbox.put(number)

        return Ticket(mailbox, cancel)

    def counts(self) -> Counts:
        """As of the last news."""
        return self._counts

    def _write(self, pipe: IO[bytes]) -> None:
        album = Album()
        with self._until_the_end():
            while (message := self._outbox.get()) is not None:
                if not isinstance(message, int):
                    number, prompt, sampling = message
                    message = number, album.packed(prompt), sampling
                send(pipe, message)

    def _read(self, pipe: IO[bytes]) -> None:
        with self._until_the_end():
            while True:
                news: News = receive(pipe)
                self._counts = news.counts
                deliver([mailbox for one in news.arrivals if (mailbox := self._take(one))])

    @contextmanager
    def _until_the_end(self) -> Iterator[None]:
        """Whatever ends one of the pipes ends every request: nobody may wait for ever."""
        try:
            yield
        except (EOFError, OSError, ValueError):  # the other process has ended, or the pipe was closed
            pass
        except Exception:
            log.exception("the engine's pipe failed")
        self._outbox.put(None)  # for the thread that writes
        with self._lock:
            left, self._mailboxes = self._mailboxes, None
        if left is not None:
            for mailbox in left.values():
                mailbox.end(EngineGoneError())
            deliver(left.values())
            self._gone()

    def _take(self, arrival: Arrival) -> Mailbox | None:
        with self._lock:
            if self._mailboxes is None or arrival.number not in self._mailboxes:
                return None
            mailbox = self._mailboxes[arrival.number]
            if arrival.outcome is not None:
                del self._mailboxes[arrival.number]
        mailbox.put(list(arrival.tokens))
        if arrival.outcome is not None:
            mailbox.end(arrival.outcome)
        return mailbox
