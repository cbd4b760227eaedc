"""The model's side of a run: pictures encoded in batches, and as many questions under way as keep the engine full."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType

import numpy as np
import torch
from torch import Tensor

from vision_lm.answer import Answer
from vision_lm.answerer import ANSWER_TOKENS, Pending, Task
from vision_lm.batch.questions import Question
from vision_lm.batch.records import Asked
from vision_lm.batch.settings import Settings
from vision_lm.checking import Check, first_word
from vision_lm.engine import Options
from vision_lm.errors import BatchError, VisionLMError
from vision_lm.model import VisionLM
from vision_lm.pictures import EncodedPicture, FittedPicture, PictureEncoder, Pictures
from vision_lm.prompts import Turn

ENCODED_AT_ONCE = 16  # pictures in a batch of the encoder


@dataclass(frozen=True)
class ToAnswer:
    """One picture, opened, and what is asked about it."""

    number: int
    pixels: np.ndarray  # (S, S, 3), uint8
    digest: bytes
    asked: tuple[str, ...]  # a question for each of the run's; a caption's is empty


@dataclass(frozen=True)
class Asking:
    """How one of the run's questions is put to every picture."""

    caption: str  # the text that stands for a caption
    task: Task
    checked: bool  # the caption


@dataclass(frozen=True)
class Answered:
    """All answers about one picture, or the error that it ended with."""

    number: int
    answers: tuple[Asked, ...]
    error: Exception | None
    seconds: float  # from the encoder to the last answer


class Answering:
    """`deliver` is called, in threads of its own, for every picture as soon as its last answer is there."""

    def __init__(
        self,
        vlm: VisionLM,
        questions: Sequence[Question],
        settings: Settings,
        deliver: Callable[[Answered], None],
    ) -> None:
        self._vlm, self._deliver = vlm, deliver
        self._questions = [self._asking(one, settings) for one in questions]
        self._first_word = first_word(vlm)
        self._pictures = Pictures(vlm.config.vision)
        self._encode = PictureEncoder(vlm.encoder, vlm.projector)
        running = vlm.engine.scheduler.limits.running
        # Half as many again wait, so that the engine never looks in vain for the next.
        self.enough = -(-running // len(questions))
        self.window = -(-3 * running // (2 * len(questions)))
        # A thread waits for each picture: that takes no processor time, and it wakes at the moment of its answer.
        self._threads = ThreadPoolExecutor(self.window, thread_name_prefix="answer")
        self._lock = threading.Lock()
        self._pending: set[Pending] = set()
        self._stopped = False

    def _asking(self, question: Question, settings: Settings) -> Asking:
        options: Options = {} if settings.max_tokens is None else {"max_tokens": settings.max_tokens}
        if question.length is not None:
            return Asking(*self._vlm.caption_task(question.length, options), question.checked)
        if settings.json_schema is not None:
            options["json_schema"] = settings.json_schema
        return Asking("", self._vlm.task(ANSWER_TOKENS, options), checked=False)

    def check(self) -> None:
        """Raise RequestError for a form or a length that the engine refuses, before any picture is asked about."""
        size = self._vlm.prompts.tokens_per_image, self._vlm.config.text.hidden_size
        blank = EncodedPicture(torch.zeros(size, dtype=self._vlm.dtype, device=self._vlm.device), b"blank")
        for one in self._questions:
            turns = [Turn(one.caption or "?", (blank,))]
            self._vlm.submit(turns, one.task, self._pictures).ticket.cancel()

    def submit(self, batch: Sequence[ToAnswer]) -> None:
        """Encode pictures, and ask everything about each."""
        start = time.perf_counter()
        for one, tokens in zip(batch, self._tokens(batch), strict=True):
            if isinstance(tokens, Exception):
                self._deliver(Answered(one.number, (), tokens, time.perf_counter() - start))
            else:
                picture = EncodedPicture(tokens, one.digest)
                self._threads.submit(self._answer, one.number, picture, one.asked, start)

    def _tokens(self, batch: Sequence[ToAnswer]) -> Sequence[Tensor | Exception]:
        """The image tokens of each; where a batch fails, of each by itself."""
        pictures = [FittedPicture(one.pixels, one.digest) for one in batch]
        try:
            # Copies: one picture's tokens would keep those of its whole batch in memory.
            return [tokens.clone() for tokens in self._encode(pictures)]
        except Exception as error:  # such as no memory on a GPU
            return [error] if len(batch) == 1 else [self._tokens([one])[0] for one in batch]

    def _answer(self, number: int, picture: EncodedPicture, asked: tuple[str, ...], start: float) -> None:
        mine: list[Pending] = []
        answers: list[Asked] = []
        failure: Exception | None = None
        try:
            pairs = list(zip(asked, self._questions, strict=True))
            turns = [([Turn(text or one.caption, (picture,))], one.task) for text, one in pairs]
            for pending, (text, one) in zip(self._submit(turns, mine), pairs, strict=True):
                said = _whole(pending)
                if one.checked:  # while the other questions are still being answered
                    said = self._confirmed(picture, said, mine)
                known = said.confidence, said.finish_reason, said.unanswerable, said.unconfirmed
                answers.append(Asked(text, said.text, *known))
        except Exception as error:  # of the engine: it costs one picture
            answers, failure = [], error
        finally:
            with self._lock:
                self._pending.difference_update(mine)
        self._deliver(Answered(number, tuple(answers), failure, time.perf_counter() - start))

    def _submit(self, asked: Sequence[tuple[list[Turn], Task]], mine: list[Pending]) -> list[Pending]:
        """Hand questions about a picture to the engine; what is under way for it is `mine`."""
        new = [self._vlm.submit(turns, task, self._pictures) for turns, task in asked]
        mine += new
        with self._lock:
            self._pending.update(new)
            if self._stopped:
                raise BatchError("the run is stopped")
        return new

    def _confirmed(self, picture: EncodedPicture, caption: Answer, mine: list[Pending]) -> Answer:
        """The caption after its second look, whose questions join those about other pictures in the engine."""
        check = Check(self._vlm, picture, caption)
        pending = self._submit([(turns, self._first_word) for turns in check.conversations], mine)
        return check.corrected(list(map(_whole, pending)))

    def __enter__(self) -> Answering:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """What is not answered yet never is."""
        with self._lock:
            self._stopped = True
            for pending in self._pending:
                pending.ticket.cancel()
        self._threads.shutdown(wait=True, cancel_futures=True)


def _whole(pending: Pending) -> Answer:
    """Wait for it. Raises BatchError where the run's end came first."""
    answer = pending.answer()
    if answer.finish_reason == "cancelled":
        raise BatchError("the run is stopped")
    return answer


def cause_of(error: Exception) -> str:
    """The error's class, as a row names it."""
    return (
        type(error).__name__ if isinstance(error, VisionLMError) else f"EngineError ({type(error).__name__})"
    )
