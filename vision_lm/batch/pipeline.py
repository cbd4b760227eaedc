"""A run at work: pictures are opened by workers, answered by the engine, and written down.

    journal ──▶ workers ──▶ settle, in order ──▶ encode ──▶ engine ──▶ journal ──▶ output

One thread, this one, decides everything; workers and engine tell it through one queue what is done.
"""

from __future__ import annotations

import queue
import time
import warnings
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import TypeAlias

from vision_lm.batch.answering import ENCODED_AT_ONCE, Answered, Answering, ToAnswer, cause_of
from vision_lm.batch.decoders import Decoders
from vision_lm.batch.duplicates import Duplicates, Original
from vision_lm.batch.journal import Journal
from vision_lm.batch.opening import Job, Opened
from vision_lm.batch.progress import Progress
from vision_lm.batch.records import Done, Planned, Result
from vision_lm.batch.settings import Settings
from vision_lm.batch.sheet import shown_on_sheet
from vision_lm.batch.summary import Tally
from vision_lm.batch.writers import Writer
from vision_lm.errors import BatchError

COMMIT_ROWS, COMMIT_SECONDS = 128, 0.5  # whichever comes first
# What comes back: a picture's answers, or its position and what opening it gave.
Events: TypeAlias = "queue.SimpleQueue[Answered | tuple[int, Opened | Exception]]"


class Batch:
    """The run while it works. A picture is known by its position."""

    def __init__(
        self,
        settings: Settings,
        journal: Journal,
        writer: Writer,
        decoders: Decoders,
        answering: Answering,
        events: Events,
        count: int,
    ) -> None:
        self._settings, self._journal, self._writer = settings, journal, writer
        self._decoders, self._answering, self._events, self._count = decoders, answering, events, count
        self._to_open = journal.pictures()
        self._all_open = False
        self._ahead = 2 * settings.workers + 2 * ENCODED_AT_ONCE  # pictures opened or being opened
        self._opening: dict[int, tuple[Planned, Result | None]] = {}
        self._opened: dict[int, Opened] = {}
        self._next = 0  # to be settled
        self._ready: deque[tuple[Planned, Opened]] = deque()
        self._answering_now: dict[int, tuple[Planned, Opened]] = {}  # the ready ones too
        self._duplicates = Duplicates(settings.dedupe)
        self._followers: dict[
            int, list[tuple[Planned, Opened]]
        ] = {}  # of an original that has no answers yet
        self._results: dict[bytes, Result] = {}  # not committed yet
        self._committed = time.perf_counter()
        self._restart()

    def _restart(self) -> None:
        """The output from its first row on."""
        self.tally = Tally(self._journal.run)
        self._written = -1 if self._settings.order == "input" else 0
        self._writer.begin()

    def work(self) -> None:
        """Until every picture has its row. Whatever ends it early, what is answered is kept."""
        with Progress(self._count, shown=self._settings.progress) as progress:
            try:
                while True:
                    self._open_more()
                    self._settle()
                    self._ask()
                    self._commit(progress, now=not self._busy)
                    if not self._busy:
                        break
                    if self._opening or self._answering_now:
                        self._take_events()
            except BaseException:
                with suppress(BatchError):
                    self._journal.record(self._results.items())
                raise
        if not self._journal.in_place():
            self._put_back()
        self._writer.finish()

    @property
    def _busy(self) -> bool:
        return bool(self._opening or self._answering_now) or not self._all_open

    def _take_events(self) -> None:
        """Wait for one, and take all that are there; what waits to be committed does not wait long."""
        try:
            event = self._events.get(timeout=COMMIT_SECONDS if self._results else None)
        except queue.Empty:
            return
        while True:
            if isinstance(event, Answered):
                self._answered(event)
            else:
                number, opened = event
                if isinstance(opened, Exception):
                    raise BatchError(f"no process can be started that opens pictures ({opened})") from opened
                self._opened[number] = opened
            try:
                event = self._events.get_nowait()
            except queue.Empty:
                return

    def _open_more(self) -> None:
        """Keep the workers busy, but not so far ahead that the pictures fill the memory."""
        while len(self._opening) + len(self._ready) < self._ahead:
            following = next(self._to_open, None)
            if following is None:
                self._all_open = True
                return
            planned, known = following
            self._opening[planned.position] = planned, known
            if planned.item.problem:
                self._opened[planned.position] = Opened(cause="RequestError", error=planned.item.problem)
            else:
                self._decoders.submit(planned.position, self._job(planned, known))

    def _job(self, planned: Planned, known: Result | None) -> Job:
        settings = self._settings
        thumbnail = settings.sheet is not None and shown_on_sheet(
            planned.position, self._count, settings.sheet_pictures
        )
        have = known is not None and known.thumbnail is not None
        return Job(planned.item, known.content if known else None, thumbnail and not have)

    def _settle(self) -> None:
        """Decide about pictures in their order, whatever order they were opened in: every run decides the same."""
        while (opened := self._opened.pop(self._next, None)) is not None:
            planned, known = self._opening[self._next]
            if opened.error is not None:
                self._failed(planned, known, opened)
            elif not self._settled(planned, known, opened):
                return  # it is opened again: its answers of before will not do
            del self._opening[self._next]
            self._next += 1

    def _failed(self, planned: Planned, known: Result | None, opened: Opened) -> None:
        """Answers of an earlier run stay beside the error, but where the bytes are known to be others by now."""
        if known is None or opened.content not in (None, known.content):
            self._record(planned, opened, Result(cause=opened.cause, error=opened.error))
            return
        if known.duplicate_of is None and not self._duplicates.find(known.pixels, known.look, planned.asked):
            original = Original(planned.position, planned.key, planned.item.image)
            self._duplicates.add(known.pixels, known.look, planned.asked, original)
        error = f"{opened.error}; the answers are of an earlier run"
        self._results[planned.key] = replace(known, cause=opened.cause, error=error)

    def _settled(self, planned: Planned, known: Result | None, opened: Opened) -> bool:
        unchanged = known if known is not None and known.content == opened.content else None
        if unchanged:
            opened = replace(
                opened,
                digest=unchanged.pixels,
                look=unchanged.look,
                thumbnail=opened.thumbnail or unchanged.thumbnail,
                more_frames=unchanged.more_frames,
            )
        original = self._duplicates.find(opened.digest, opened.look, planned.asked)
        if original is not None:
            self._follow(original, planned, opened)
            return True
        if unchanged and unchanged.duplicate_of is not None and opened.pixels is None:
            # Its original is gone.
            self._decoders.submit(planned.position, self._job(planned, None))
            return False
        self._duplicates.add(
            opened.digest,
            opened.look,
            planned.asked,
            Original(planned.position, planned.key, planned.item.image),
        )
        if not unchanged or unchanged.duplicate_of is not None:
            unchanged = self._journal.answers_to(opened.content or "", planned.asked)  # it was renamed
        if unchanged:
            self._record(planned, replace(opened, seconds=unchanged.open_seconds), unchanged)
        else:
            self._ready.append((planned, opened))
            self._answering_now[planned.position] = planned, opened
        return True

    def _follow(self, original: Original, planned: Planned, opened: Opened) -> None:
        """A duplicate: it has its original's answers, now or when they come."""
        if original.position in self._answering_now:
            opened = replace(opened, pixels=None)
            self._followers.setdefault(original.position, []).append((planned, opened))
            return
        result = self._results.get(original.key) or self._journal.answers_of(original.key)
        self._duplicate(original.image, planned, opened, result)

    def _duplicate(self, image: str, planned: Planned, opened: Opened, result: Result) -> None:
        if result.answers:  # that its original cannot be read just now is no fault of its own
            result = replace(result, cause=None, error=None)
        result = replace(result, duplicate_of=image, answered=self._journal.run, answer_seconds=0.0)
        self._record(planned, opened, result)

    def _ask(self) -> None:
        """Hand pictures to the engine: whole batches for the encoder, fewer only where it would have to wait."""
        while self._ready:
            under_way = len(self._answering_now) - len(self._ready)
            room = min(self._answering.window - under_way, ENCODED_AT_ONCE)
            hungry = under_way < self._answering.enough or not self._opening
            if room < 1 or (min(room, len(self._ready)) < ENCODED_AT_ONCE and not hungry):
                return
            batch = []
            for _ in range(min(room, len(self._ready))):
                planned, opened = self._ready.popleft()
                assert opened.pixels is not None
                batch.append(ToAnswer(planned.position, opened.pixels, opened.digest, planned.asked))
                self._answering_now[planned.position] = planned, replace(opened, pixels=None)
            self._answering.submit(batch)

    def _answered(self, answered: Answered) -> None:
        planned, opened = self._answering_now.pop(answered.number)
        if answered.error is None:
            result = Result(answers=answered.answers, answered=self._journal.run)
        else:
            result = Result(cause=cause_of(answered.error), error=f"{planned.item.image}: {answered.error}")
        result = replace(result, answer_seconds=answered.seconds)
        self._record(planned, opened, result)
        for follower, its in self._followers.pop(answered.number, ()):
            self._duplicate(planned.item.image, follower, its, result)

    def _record(self, planned: Planned, opened: Opened, result: Result) -> None:
        """The result, with what is known of the picture itself."""
        self._results[planned.key] = replace(
            result,
            content=opened.content,
            pixels=opened.digest,
            look=opened.look,
            more_frames=opened.more_frames,
            open_seconds=opened.seconds,
            thumbnail=opened.thumbnail,
        )

    def _commit(self, progress: Progress, *, now: bool) -> None:
        """Into the journal first, then into the output: what the output shows is never lost."""
        waited = time.perf_counter() - self._committed
        if not self._results or not (now or len(self._results) >= COMMIT_ROWS or waited >= COMMIT_SECONDS):
            return
        if not self._journal.in_place():
            self._put_back()
        self._journal.record(self._results.items())
        self._results.clear()
        self._write()
        self._committed = time.perf_counter()
        progress.show(self.tally.pictures, self.tally.kept)

    def _write(self) -> None:
        self._writer.write(self._counted(self._journal.done(self._settings.order, self._written)))

    def _counted(self, rows: Iterator[Done]) -> Iterator[Done]:
        for row in rows:
            self.tally.add(row)
            self._written = row.planned.position if self._settings.order == "input" else row.done
            yield row

    def _put_back(self) -> None:
        """The folder was removed: everything so far is written there again."""
        self._journal.restore()
        self._restart()
        self._write()
        warnings.warn(
            f"{self._settings.out.parent}: was removed while the run worked; it is there again, with all rows so far",
            stacklevel=2,
        )
