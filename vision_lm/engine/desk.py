"""An engine's end of the pipes over which another process asks it: see `vision_lm.engine.remote`."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from typing import IO

from vision_lm.engine.album import Album
from vision_lm.engine.engine import Engine
from vision_lm.engine.face import Counts
from vision_lm.engine.remote import Arrival, News
from vision_lm.engine.request import Prompt
from vision_lm.engine.room import Room
from vision_lm.engine.sampling import Sampling
from vision_lm.engine.ticket import Mailbox, Ticket
from vision_lm.frames import receive, send


@dataclass(frozen=True)
class Ready:
    """The first that is written: a model is loaded, and this is what to know of it."""

    room: Room
    counts: Counts
    tokens_per_image: int
    device: str


class Desk:
    """Where requests come in by number, and news of them go out."""

    def __init__(self, engine: Engine, answers: IO[bytes]) -> None:
        engine.deliver = self.deliver
        self._engine, self._answers = engine, answers
        self._album = Album()
        self._tickets: dict[int, Ticket] = {}  # held until they end: one that nobody holds is cancelled
        self._numbers: dict[Mailbox, int] = {}
        self._lock = threading.Lock()  # of the two, and of what is written

    def serve(self, requests: IO[bytes]) -> None:
        """Take what comes, until the other side has ended: EOFError."""
        while True:
            self.take(receive(requests))

    def take(self, message: tuple[int, Prompt, Sampling] | int) -> None:
        if isinstance(message, int):
            if ticket := self._tickets.get(message):
                ticket.cancel()
            return
        number, prompt, sampling = message
        prompt = self._album.unpacked(prompt)
        with self._lock:  # or the first news could come before its number is known
            try:
                ticket = self._engine.submit(prompt, sampling)
            except Exception as error:  # checked on the other side already
                self._send([Arrival(number, (), portable(error))])
                return
            self._tickets[number] = ticket
            self._numbers[ticket.mailbox] = number

    def deliver(self, mailboxes: Collection[Mailbox]) -> None:
        """In the engine's thread, once a step."""
        with self._lock:
            self._send([self._arrival(mailbox) for mailbox in mailboxes])

    def _arrival(self, mailbox: Mailbox) -> Arrival:
        number = self._numbers[mailbox]
        tokens = tuple(mailbox.tokens)
        mailbox.tokens.clear()
        outcome = mailbox.generation or (mailbox.error and portable(mailbox.error))
        if outcome is not None:
            del self._numbers[mailbox], self._tickets[number]
        return Arrival(number, tokens, outcome)

    def _send(self, arrivals: list[Arrival]) -> None:
        with suppress(OSError):  # nobody reads any more: the input has ended, too
            send(self._answers, News(arrivals, self._engine.counts()))


def portable(error: BaseException) -> BaseException:
    """The same, or its text where it cannot be sent."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
