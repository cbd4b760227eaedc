"""Work that its visitor can stop at any moment, also while it waits for a first word."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator
from typing import TypeVar

T = TypeVar("T")
PATIENCE = 0.05  # seconds between two looks at the stop


class Stops:
    """Who has asked to stop, by session. A session's new work replaces its old."""

    def __init__(self) -> None:
        self._stops: dict[str, threading.Event] = {}

    def begin(self, session: str) -> threading.Event:
        self.stop(session)
        self._stops[session] = stop = threading.Event()
        return stop

    def stop(self, session: str) -> None:
        stop = self._stops.pop(session, None)
        if stop is not None:
            stop.set()


def until_stopped(work: Generator[T, None, None], stop: threading.Event) -> Iterator[T]:
    """The latest item of `work` whenever there is a new one, until it ends or `stop` is set. Raises what it raises.

    The work goes on in a thread of its own and is closed by it: waiting for a model's first word cannot be interrupted.
    """
    news: queue.SimpleQueue[T] = queue.SimpleQueue()
    failures: list[BaseException] = []
    left = threading.Event()  # nobody reads any more

    def read() -> None:
        try:
            for item in work:
                if stop.is_set() or left.is_set():
                    break
                news.put(item)
        except BaseException as error:
            failures.append(error)
        finally:
            work.close()

    reader = threading.Thread(target=read, name="vision-lm demo", daemon=True)
    reader.start()
    try:
        while not stop.is_set():
            ended = not reader.is_alive()  # before the look: what it put last must not be missed
            try:
                item = news.get(timeout=0 if ended else PATIENCE)
                while not news.empty():
                    item = news.get()
                yield item
            except queue.Empty:
                if ended:
                    break
        if failures and not stop.is_set():
            raise failures[0]
    finally:
        left.set()
