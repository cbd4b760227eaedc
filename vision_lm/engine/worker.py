"""The engine's thread: one for as long as the engine lives, since a GPU's libraries keep much for each thread."""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable
from queue import SimpleQueue
from typing import Generic, TypeVar

log = logging.getLogger(__name__)
Owner = TypeVar("Owner")


class Worker(Generic[Owner]):
    """Calls `work(owner)` in its own thread, always the same one, after each `wake`.

    While it sleeps it does not keep its owner alive, and it ends soon after its owner is gone. When Python exits,
    what is under way is waited for: a thread must not be stopped inside of torch.
    """

    def __init__(self, owner: Owner, work: Callable[[Owner], None]) -> None:
        """`work` returns soon after the main thread has ended."""
        self._owner, self._work = weakref.ref(owner), work
        self._calls: SimpleQueue[bool] = SimpleQueue()  # whether to go on; a finalizer may put at any moment
        self._thread: threading.Thread | None = None
        weakref.finalize(owner, self._stop)

    def wake(self) -> None:
        """Not by two threads at once."""
        if self._thread is None or not self._thread.is_alive():  # a forked process has none any more
            self._calls = SimpleQueue()
            arguments = (self._calls, self._owner, self._work)
            # A daemon, because Python waits for the others before it calls finalizers.
            self._thread = threading.Thread(
                target=_serve, args=arguments, name="vision-lm engine", daemon=True
            )
            self._thread.start()
        self._calls.put(True)

    def _stop(self) -> None:
        self._calls.put(False)
        # Elsewhere this may be the garbage collector's call, in the thread itself or where locks are held.
        if self._thread is not None and not threading.main_thread().is_alive():
            self._thread.join()


def _serve(calls: SimpleQueue[bool], reference: weakref.ref[Owner], work: Callable[[Owner], None]) -> None:
    while calls.get():
        owner = reference()
        if owner is None:
            return
        try:
            work(owner)
        except Exception:  # whoever wakes it next must find it there
            log.exception("the engine's thread goes on after a fault")
        del owner  # or it would live for as long as the thread sleeps
