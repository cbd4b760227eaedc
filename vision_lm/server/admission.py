"""How many answers may be under way: beyond the limit a request is refused at once, so that none waits in vain."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from vision_lm.server.errors import ApiError

RETRY_AFTER = {"Retry-After": "1"}  # seconds


class Slot:
    """One request's share of the queue: as many places as it asks answers for."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self.places = 0

    def widen(self, more: int) -> None:
        """Take more places. Raises ApiError (429) if there are not so many."""
        self._admission.take(more)
        self.places += more


class Admission:
    """Counts the places that are taken. Lives on the event loop, so it needs no lock."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.taken = 0
        self.draining = False  # told to stop: what runs is finished, nothing new begins

    @contextmanager
    def enter(self) -> Iterator[Slot]:
        """One place while the request lasts. Raises ApiError: 503 when draining, 429 when full."""
        if self.draining:
            headers = RETRY_AFTER | {"Connection": "close"}
            raise ApiError(503, "the service is stopping; ask another one", "draining", headers=headers)
        slot = Slot(self)
        slot.widen(1)
        try:
            yield slot
        finally:
            self.taken -= slot.places

    def take(self, places: int) -> None:
        if self.taken + places > self.limit:
            message = (
                f"{self.taken} answers are under way, at most {self.limit} may be; try again in a moment"
            )
            raise ApiError(429, message, "queue_full", headers=RETRY_AFTER)
        self.taken += places
