"""The engine: one loop that serves every request, whoever waits for it and however."""

from __future__ import annotations

import itertools
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vision_lm.engine.face import AnyEngine, Counts
from vision_lm.engine.given import Given
from vision_lm.engine.grammar import Grammars, Matcher
from vision_lm.engine.image_cache import BUDGET, ImageCache
from vision_lm.engine.kv_cache import allocate_cache, default_cache_tokens, out_of_memory
from vision_lm.engine.pages import PAGE, Pages, pages_for
from vision_lm.engine.request import Generation, Prompt, Request
from vision_lm.engine.room import Room
from vision_lm.engine.runner import Runner
from vision_lm.engine.sampling import Row, Sampling, Token, choose
from vision_lm.engine.scheduler import Limits, Scheduler, Span
from vision_lm.engine.stopping import FinishReason, StopStrings
from vision_lm.engine.ticket import Mailbox, Ticket, deliver
from vision_lm.engine.torch_decoder import TorchDecoder
from vision_lm.engine.worker import Worker
from vision_lm.errors import RequestError

log = logging.getLogger(__name__)
LEAST = 64  # tokens of a step: where memory does not do for these, smaller steps are no help


@dataclass
class Stats:
    """What the engine has done so far."""

    steps: int = 0
    prompt_tokens: int = 0  # computed; those found in the cache are `Scheduler.shared_tokens`
    generated_tokens: int = 0
    peak_pages: int = 0
    forward_seconds: float = 0.0  # in the model
    busy_seconds: float = 0.0  # in the loop, model included


class Engine(AnyEngine):
    """Generates for many requests at once. Any thread may submit; one thread computes."""

    def __init__(
        self,
        decoder: TorchDecoder,
        encode: Callable[[Sequence[Any]], Sequence[Tensor]],
        image_token_id: int,
        *,
        grammars: Grammars | None = None,
        decode: Callable[[Sequence[int]], str] | None = None,
        limits: Limits | None = None,
        cache_tokens: int | None = None,
        image_bytes: int = BUDGET,
    ) -> None:
        """`encode`: pictures -> their image tokens (M, Dt); `cache_tokens`: the memory budget, in tokens kept, and
        `image_bytes` that of encoded pictures.

        Requests with a form need `grammars`, requests with stop strings `decode`: token ids -> text.
        """
        if cache_tokens is not None and cache_tokens < 1:
            raise RequestError(f"cache_tokens is {cache_tokens}: give a whole number of at least 1")
        self.decoder, self.image_token_id = decoder, image_token_id
        self.pid = os.getpid()
        # Tells the readers of these mailboxes that something has come: once a step, in the engine's thread.
        self.deliver: Callable[[Collection[Mailbox]], None] = deliver
        self._grammars, self._decode = grammars, decode
        self.images = ImageCache(encode, image_bytes)
        self.cache = allocate_cache(
            decoder.config,
            pages_for(cache_tokens or default_cache_tokens(decoder.config, decoder.dtype, decoder.device)),
            decoder.device,
            decoder.dtype,
        )
        self.runner = Runner(decoder, self.cache, self.images)
        self.pages = Pages(self.cache.pages)
        self.room = Room(decoder.config.max_position_embeddings, self.pages.count * PAGE)
        self.scheduler = Scheduler(self.pages, limits or Limits())
        self.stats = Stats()
        self._numbers = itertools.count()
        self._mailboxes: dict[Request, Mailbox] = {}  # of requests that have not ended
        self._news: dict[Mailbox, None] = {}  # mailboxes whose readers are not told yet
        # No lock: a ticket may be forgotten at any moment, in any thread.
        self._cancelled: deque[Request] = deque()
        self._lock = threading.Lock()  # of the three below
        self._arrived: list[Request] = []
        self._idle = threading.Event()  # set while nothing is under way
        self._idle.set()
        self._worker = Worker(self, Engine._serve)

    def counts(self) -> Counts:
        """What it has done so far, and what it is at."""
        return Counts(
            prompt_tokens=self.stats.prompt_tokens,
            shared_tokens=self.scheduler.shared_tokens,
            generated_tokens=self.stats.generated_tokens,
            pictures_encoded=self.images.encoded,
            preemptions=self.scheduler.preemptions,
            pages_used=self.pages.used,
            pages_available=self.pages.available,
            running=len(self.scheduler.running),
            waiting=len(self.scheduler.waiting),
        )

    def submit(self, prompt: Prompt, sampling: Sampling) -> Ticket:
        """Queue a request; its ticket yields tokens and the result. Raises RequestError before it is queued."""
        self.check(len(prompt.ids), sampling)
        stop_strings = None
        matcher: Matcher | Given | None = None
        if stop := (*sampling.stop, *sampling.own_stop):
            if self._decode is None:
                raise RequestError("stop strings need an engine that can decode tokens")
            stop_strings = StopStrings(stop, self._decode)
        if sampling.constraint:
            if self._grammars is None:
                raise RequestError("json_schema, regex and choices need an engine with grammars")
            matcher = self._grammars.matcher(sampling.constraint)
        elif sampling.given:
            matcher = Given(sampling.given, self.decoder.config.vocab_size)
        request = Request(
            next(self._numbers),
            prompt,
            sampling,
            self.image_token_id,
            stop_strings,
            matcher,
            self.decoder.config.attention,
        )
        mailbox = Mailbox()
        with self._lock:
            self._mailboxes[request] = mailbox
            self._arrived.append(request)
            self._idle.clear()
            self._worker.wake()

        def cancel() -> None:  # must not hold the ticket
            if request in self._mailboxes:
                self._cancelled.append(request)

        return Ticket(mailbox, cancel)

    def wait(self) -> None:
        """Until nothing is under way and `stats` are complete."""
        self._idle.wait()

    def _serve(self) -> None:
        """The loop, until there is no more work."""
        while True:
            start = time.perf_counter()
            with self._lock:
                arrived, self._arrived = self._arrived, []
                for request in arrived:
                    self.scheduler.add(request)
                if not threading.main_thread().is_alive():  # Python exits
                    self._cancelled.extend(list(self._mailboxes))
                while self._cancelled:
                    self._finish(self._cancelled.popleft(), "cancelled")
                busy = self.scheduler.busy
                if not busy:
                    self._idle.set()
            if not busy:
                self._deliver()
                return
            try:
                spans = self.scheduler.plan()
                self.stats.peak_pages = max(self.stats.peak_pages, self.pages.used)
                self._step(spans)
            except BaseException as error:  # a fault of our own: nobody may wait for ever
                log.exception("the engine failed; every request ends")
                for request in [*self.scheduler.running, *self.scheduler.waiting]:
                    self._end(request, error)
            self._deliver()
            self.stats.steps += 1
            self.stats.busy_seconds += time.perf_counter() - start

    def _step(self, spans: Sequence[Span]) -> None:
        """Compute the spans, and choose a token for every request that is complete."""
        start = time.perf_counter()
        try:
            outcome = self.runner.run(spans)
        except Exception as error:
            if len(spans) > 1:  # whose fault is it? Each again alone: what is written twice is the same
                if out_of_memory(error):
                    now = self.scheduler.limits
                    self._shrink(max(now.running // 2, 1), max(now.step_tokens // 2, LEAST))
                for span in spans:
                    self._step([span])
            elif not (out_of_memory(error) and self._divide(spans[0])):
                self._end(spans[0].request, error)
            return
        self.stats.forward_seconds += time.perf_counter() - start
        self.stats.prompt_tokens += sum(span.prompt_tokens for span in spans)
        self.scheduler.done(spans)
        for request, chosen in outcome.chosen:
            self._accept(request, chosen)
        if outcome.logits is not None:
            self._choose(outcome.open, outcome.logits)

    def _choose(self, requests: Sequence[Request], logits: Tensor) -> None:
        """Their next tokens, from the logits (R, V)."""
        rows: list[Row] = []
        places: list[int] = []  # of those whose form can say what may come
        for place, request in enumerate(requests):
            try:
                rows.append(request.row(logits.shape[-1]))
                places.append(place)
            except Exception as error:
                self._end(request, error)
        if len(places) < len(requests):
            logits = logits[places]
        for place, chosen in zip(places, self._chosen(logits, rows), strict=True):
            self._accept(requests[place], chosen)

    def _chosen(self, logits: Tensor, rows: Sequence[Row]) -> Sequence[Token | Exception]:
        """For each row its token, or what is wrong with it; without memory for all at once, one after the other."""
        try:
            return choose(logits, rows)
        except Exception as error:
            if len(rows) < 2:
                return [error]
            if out_of_memory(error):
                now = self.scheduler.limits
                self._shrink(max(now.running // 2, 1), now.step_tokens)
            return [self._chosen(logits[n : n + 1], rows[n : n + 1])[0] for n in range(len(rows))]

    def _divide(self, span: Span) -> bool:
        """Memory ran out for this one alone: whether it may come again in parts, as smaller steps make it."""
        if span.count <= LEAST or span.start < span.request.prefix:  # which is computed as one
            return False
        self._shrink(self.scheduler.limits.running, max(span.count // 2, LEAST))
        return span.count > self.scheduler.limits.step_tokens

    def _shrink(self, running: int, tokens: int) -> None:
        """Memory ran out: smaller steps from now on, of so many sequences and tokens."""
        now = self.scheduler.limits
        self.scheduler.limits = Limits(running, max(tokens, running), min(now.chunk, tokens))
        log.warning("out of memory in a step of %d tokens: at most %d from now on", now.step_tokens, tokens)

    def _accept(self, request: Request, chosen: Token | Exception) -> None:
        """The next token of a request, or why it has none."""
        try:
            if isinstance(chosen, Exception):
                raise chosen
            request.accept(chosen)
        except Exception as error:
            self._end(request, error)
            return
        self.stats.generated_tokens += 1
        certain = request.certain
        if certain > request.sent:
            mailbox = self._mailboxes[request]
            mailbox.put(request.tokens[request.sent : certain])
            self._news[mailbox] = None
            request.sent = certain
        if request.finish_reason:
            self._finish(request, request.finish_reason)

    def _finish(self, request: Request, reason: FinishReason) -> None:
        """It has all its tokens, or needs no more; a request that has ended already stays as it ended."""
        if request in self._mailboxes:
            request.finish_reason = reason
            self._end(request, request.generation())

    def _end(self, request: Request, outcome: Generation | BaseException) -> None:
        self.scheduler.remove(request)
        mailbox = self._mailboxes.pop(request, None)
        if mailbox is not None:
            mailbox.end(outcome)
            self._news[mailbox] = None

    def _deliver(self) -> None:
        """Tell those whose mailboxes have something new, once a step."""
        news, self._news = self._news, {}
        self.deliver(news)
