"""A batch run from its settings to its summary."""

from __future__ import annotations

import itertools
import queue
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress

import torch

import vision_lm
from vision_lm.batch.answering import Answering
from vision_lm.batch.decoders import Decoders
from vision_lm.batch.identity import identity
from vision_lm.batch.journal import Journal
from vision_lm.batch.opening import Opening
from vision_lm.batch.pipeline import Batch, Events
from vision_lm.batch.planning import check_settings, check_sidecars, plan
from vision_lm.batch.questions import Question, read_questions
from vision_lm.batch.rows import Table
from vision_lm.batch.settings import Settings
from vision_lm.batch.sheet import write_sheet
from vision_lm.batch.sources import Item
from vision_lm.batch.summary import Summary
from vision_lm.batch.writers import SidecarWriter, Writer, faults, writer_for
from vision_lm.images import ImageLimits
from vision_lm.model import VisionLM


def run(settings: Settings, vlm: VisionLM | None = None) -> Summary:
    """Answer everything, with `vlm` or the model that the settings name.

    Raises BatchError, CheckpointError or RequestError where it cannot begin or go on; what was answered is kept.
    """
    questions = read_questions(settings)
    writer = writer_for(settings.out, Table(questions, json_answers=settings.json_schema is not None))
    check_settings(settings, writer)
    planned = plan(settings, questions)
    first = next(planned)  # what is wrong with the inputs is mostly known here, before the model is loaded
    if vlm is not None:
        return _run(settings, vlm, questions, writer, itertools.chain([first], planned))
    with torch_threads(settings.threads):
        vlm = vision_lm.load(settings.model, settings.device, quantize=settings.quantize)
        if not vlm.config.projector_trained:
            warnings.warn(
                f"the projector of {settings.model} is untrained; its answers are noise", stacklevel=3
            )
        return _run(settings, vlm, questions, writer, itertools.chain([first], planned))


def _run(
    settings: Settings,
    vlm: VisionLM,
    questions: Sequence[Question],
    writer: Writer,
    planned: Iterator[tuple[Item, tuple[str, ...]]],
) -> Summary:
    journal = Journal(writer.journal, settings.out)
    events: Events = queue.SimpleQueue()
    with faults(settings.out, journal.path), ExitStack() as at_end:
        answering = at_end.enter_context(Answering(vlm, questions, settings, events.put))
        answering.check()
        at_end.callback(journal.close)
        journal.open(identity(settings, questions, vlm), overwrite=settings.overwrite)
        count, given_twice = journal.plan(planned)
        if isinstance(writer, SidecarWriter):
            check_sidecars(journal, writer, settings.overwrite)
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
                write_sheet(sheet, journal.done("input", -1), writer.table, count, settings.sheet_pictures)
        return batch.tally.summary(settings.out, given_twice, time.perf_counter() - start, sheet)


@contextmanager
def torch_threads(wanted: int | None) -> Iterator[None]:
    """As many threads for torch as a run has: see `Settings.threads`. Afterwards as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(wanted or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _close_quietly(writer: Writer) -> None:
    # After a finished run there is nothing to close; after another its error counts.
    with suppress(Exception):
        writer.close()
