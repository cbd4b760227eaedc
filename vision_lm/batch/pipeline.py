"""A batch run from its inputs to its summary: pictures are opened by workers, answered by the engine, and written down.

    journal ──▶ workers ──▶ settle, in order ──▶ encode ──▶ engine ──▶ journal ──▶ output

One thread, this one, decides everything; workers and engine tell it through one queue what is done.
"""

from __future__ import annotations

import importlib.util
import itertools
import queue
import sys
import time
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import replace
from typing import Any

import vision_lm
from vision_lm.batch.answering import ENCODED_AT_ONCE, Answered, Answering, ToAnswer, cause_of
from vision_lm.batch.decoders import Decoders
from vision_lm.batch.duplicates import Duplicates, Original
from vision_lm.batch.identity import identity
from vision_lm.batch.journal import Done, Journal, Planned, Result
from vision_lm.batch.opening import Job, Opened, Opening
from vision_lm.batch.questions import Question, read_questions
from vision_lm.batch.rows import Table
from vision_lm.batch.settings import Settings
from vision_lm.batch.sheet import check_sheet, shown_on_sheet, write_sheet
from vision_lm.batch.sources import Item, expand
from vision_lm.batch.summary import Summary, Tally
from vision_lm.batch.writers import SidecarWriter, Writer, faults, writer_for
from vision_lm.errors import BatchError, RequestError
from vision_lm.images import ImageLimits
from vision_lm.model import VisionLM
from vision_lm.prompts import check_question

COMMIT_ROWS, COMMIT_SECONDS = 128, 0.5  # whichever comes first


def run(settings: Settings, vlm: VisionLM | None = None) -> Summary:
    """Answer everything, with `vlm` or the model that the settings name.

    Raises BatchError, CheckpointError or RequestError where it cannot begin or go on; what was answered is kept.
    """
    questions = read_questions(settings)
    table = Table(questions, json_answers=settings.json_schema is not None)
    writer = writer_for(settings.out, table)
    _check(settings, writer)
    planned = plan(settings, questions)
    first = next(planned)  # what is wrong with the inputs is mostly known here, before the model is loaded
    if vlm is None:
        vlm = vision_lm.load(settings.model, settings.device, quantize=settings.quantize)
        if not vlm.config.projector_trained:
            warnings.warn(f"the projector of {settings.model} is untrained; its answers are noise", stacklevel=2)
    journal = Journal(writer.journal, settings.out)
    events: Events = queue.SimpleQueue()
    with faults(settings.out, journal.path), ExitStack() as at_end:
        answering = at_end.enter_context(Answering(vlm, questions, settings, events.put))
        answering.check()
        at_end.callback(journal.close)
        journal.open(identity(settings, questions, vlm), overwrite=settings.overwrite)
        count, given_twice = journal.plan(itertools.chain([first], planned))
        if isinstance(writer, SidecarWriter):
            _check_sidecars(journal, writer, settings.overwrite)
        opening = Opening(
            vlm.config.vision,
            settings.limits or ImageLimits(),
            settings.allow_url_hosts,
            look=settings.dedupe == "perceptual",
        )
        decoders = at_end.enter_context(
            Decoders(
                opening,
                min(settings.workers, count),
                settings.picture_timeout,
                lambda number, opened: events.put((number, opened)),
            )
        )
        start = time.perf_counter()
        at_end.callback(_close_quietly, writer)
        batch = Batch(settings, journal, writer, decoders, answering, events, count)
        batch.work()
        sheet = settings.sheet
        if sheet is not None:
            with faults(sheet, journal.path):
                write_sheet(sheet, journal.done("input", -1), table, count, settings.sheet_pictures)
        return batch.tally.summary(settings.out, given_twice, time.perf_counter() - start, sheet)


Events = queue.SimpleQueue["Answered | tuple[int, Opened | Exception]"]


def plan(settings: Settings, questions: Sequence[Question]) -> Iterator[tuple[Item, tuple[str, ...]]]:
    """Every picture with its questions filled in. Raises BatchError for a column that a list lacks."""
    fields = tuple(dict.fromkeys(name for one in questions for name in one.fields))
    for item in expand(settings.inputs, settings.image_column, columns=bool(fields)):
        missing = [name for name in fields if name not in item.columns]
        if missing and not item.sample:
            raise BatchError(
                f"{settings.questions}: column {missing[0]!r} is unknown for {item.image}; allowed: "
                f"{', '.join(item.columns)}"
            )
        problem = item.problem
        asked = tuple("" if one.fields else one.text for one in questions)
        if missing:
            problem = f"{item.image}: its sample has no {missing[0]!r}; it has {', '.join(sorted(item.columns))}"
        elif fields:
            asked = tuple(one.filled(item.columns) for one in questions)
            problem = problem or _problem(item.image, asked, questions)
        yield replace(item, problem=problem, columns={}), asked


def _problem(image: str, asked: Sequence[str], questions: Sequence[Question]) -> str | None:
    try:
        for text, question in zip(asked, questions, strict=True):
            if question.fields:
                check_question(text)
    except RequestError as error:
        return f"{image}: {error}"
    return None


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
        self._followers: dict[int, list[tuple[Planned, Opened]]] = {}  # of an original that has no answers yet
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
        with _progress(self._settings, self._count) as bar:
            try:
                while True:
                    self._open_more()
                    self._settle()
                    self._ask()
                    self._commit(bar, now=not self._busy)
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
                self._record(planned, opened, Result(cause=opened.cause, error=opened.error))
            elif not self._settled(planned, known, opened):
                return  # it is opened again: its answers of before will not do
            del self._opening[self._next]
            self._next += 1

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
            self._opening[planned.position] = planned, None
            self._decoders.submit(planned.position, self._job(planned, None))
            return False
        self._duplicates.add(
            opened.digest, opened.look, planned.asked, Original(planned.position, planned.key, planned.item.image)
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

    def _commit(self, bar: Any, *, now: bool) -> None:
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
        if bar is not None:
            bar.update(self.tally.pictures - bar.n)

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


def _check(settings: Settings, writer: Writer) -> None:
    """What can be known at once. Raises BatchError."""
    for name, least in (("workers", 1), ("sheet_pictures", 1)):
        if getattr(settings, name) < least:
            raise BatchError(f"{name} is {getattr(settings, name)}; give at least {least}")
    needed = {"imagehash": settings.dedupe == "perceptual", "pyarrow": settings.out.suffix.lower() == ".parquet"}
    needed |= {"tqdm": settings.progress}
    for package, wanted in needed.items():
        if wanted and importlib.util.find_spec(package) is None:
            raise BatchError(f"{package} is not installed; pip install 'vision-lm[batch]'")
    if settings.sheet is not None:
        check_sheet(settings.sheet)
    if writer.begun() and not writer.journal.exists() and not settings.overwrite:
        raise BatchError(
            f"{settings.out}: exists, without the journal ({writer.journal.name}) of a run that could go on; "
            "give another --out, or --overwrite"
        )


def _check_sidecars(journal: Journal, writer: SidecarWriter, overwrite: bool) -> None:
    """Texts that would take each other's place, or that of someone else's. Raises BatchError."""
    taken: dict[int, int] = {}
    for planned, result in journal.pictures():
        if planned.item.problem:
            continue
        path = writer.path(planned.item.relative)
        # Hashes, as many as there are pictures, and no names: the memory stays small.
        if taken.setdefault(hash(path), planned.position) != planned.position:
            raise BatchError(
                f"{path}: would hold the text of {planned.item.image} and of another picture; give each a name of "
                "its own, or another --out, such as answers.jsonl"
            )
        if result is None and not overwrite and path.exists():
            raise BatchError(f"{path}: exists, and is not of this run; give another --out, or --overwrite")


def _progress(settings: Settings, count: int) -> Any:
    """A bar with rate and remaining time, where there is someone to see it."""
    if not settings.progress:
        return nullcontext()
    from tqdm import tqdm

    return tqdm(total=count, unit=" pictures", file=sys.stderr, dynamic_ncols=True, smoothing=0.05)


def _close_quietly(writer: Writer) -> None:
    with suppress(Exception):  # after a finished run there is nothing to close, after another its error counts
        writer.close()

