"""The engine: one loop that serves every request, whoever waits for it and however."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vision_lm.engine.grammar import Grammars
from vision_lm.engine.image_cache import ImageCache
from vision_lm.engine.kv_cache import KVCache, bytes_per_token
from vision_lm.engine.pages import PAGE, Pages, pages_for
from vision_lm.engine.request import Generation, Prompt, Request
from vision_lm.engine.sampling import Row, Sampling, Token, choose
from vision_lm.engine.scheduler import Limits, Scheduler, Span
from vision_lm.engine.stopping import FinishReason, StopStrings
from vision_lm.engine.ticket import Mailbox, Ticket
from vision_lm.engine.torch_decoder import Chunk, TorchDecoder
from vision_lm.errors import RequestError, VisionLMError

log = logging.getLogger(__name__)

CACHE_TOKENS = 16_384  # of the key-value cache unless told otherwise, and
CACHE_BYTES = 2 << 30  # no more than so much memory, but always room for one full context


@dataclass
class Stats:
    """What the engine has done so far."""

    steps: int = 0
    prompt_tokens: int = 0  # computed in prefill; those found in the cache are `Scheduler.shared_tokens`
    generated_tokens: int = 0
    peak_pages: int = 0
    forward_seconds: float = 0.0  # in the model
    busy_seconds: float = 0.0  # in the loop, model included


class Engine:
    """Generates for many requests at once. Any thread may submit; one thread computes while there is work."""

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
    ) -> None:
        """`encode`: pictures -> their image tokens (M, Dt); `cache_tokens`: the memory budget, in tokens kept.

        Requests with a form need `grammars`, requests with stop strings `decode`: token ids -> text.
        """
        self.decoder, self.image_token_id = decoder, image_token_id
        self._grammars, self._decode = grammars, decode
        self.images = ImageCache(encode)
        self.cache = KVCache(
            decoder.config,
            pages_for(cache_tokens or default_cache_tokens(decoder)),
            decoder.device,
            decoder.dtype,
        )
        self.pages = Pages(self.cache.pages)
        self.scheduler = Scheduler(self.pages, limits or Limits())
        self.stats = Stats()
        self._numbers = itertools.count()
        self._mailboxes: dict[Request, Mailbox] = {}  # of requests that have not ended
        self._cancelled: deque[Request] = (
            deque()
        )  # no lock: a ticket may be forgotten at any moment, in any thread
        self._lock = threading.Lock()  # of the two below
        self._arrived: list[Request] = []
        self._thread: threading.Thread | None = None

    def check(self, length: int, sampling: Sampling) -> None:
        """Raise RequestError if a prompt of `length` tokens and its answer do not fit the model or the cache."""
        positions = self.decoder.config.max_position_embeddings
        if length < 1:
            raise RequestError("the prompt is empty; give at least one token")
        for room, what in (
            (positions, "the model's {:,} positions"),
            (self.pages.count * PAGE, "a cache of {:,}"),
        ):
            if length + sampling.max_tokens > room:
                raise RequestError(
                    f"the prompt has {length:,} tokens, and max_tokens {sampling.max_tokens:,} of "
                    f"{what.format(room)} leave room for {max(room - sampling.max_tokens, 0):,}; "
                    "shorten the conversation, give fewer images, or lower max_tokens"
                )

    def submit(self, prompt: Prompt, sampling: Sampling) -> Ticket:
        """Queue a request; its ticket yields tokens and the result. Raises RequestError before it is queued."""
        self.check(len(prompt.ids), sampling)
        stop_strings = matcher = None
        if sampling.stop:
            if self._decode is None:
                raise RequestError("stop strings need an engine that can decode tokens")
            stop_strings = StopStrings(sampling.stop, self._decode)
        if sampling.constraint:
            if self._grammars is None:
                raise RequestError("json_schema, regex and choices need an engine with grammars")
            matcher = self._grammars.matcher(sampling.constraint)
        request = Request(next(self._numbers), prompt, sampling, self.image_token_id, stop_strings, matcher)
        mailbox = Mailbox()
        self._mailboxes[request] = mailbox
        with self._lock:
            self._arrived.append(request)
            if self._thread is None or not self._thread.is_alive():
                # Not a daemon: Python must not exit while it is inside torch. It stops by itself when Python exits.
                self._thread = threading.Thread(target=self._serve, name="vision-lm engine")
                self._thread.start()

        def cancel() -> None:  # must not hold the ticket
            if request in self._mailboxes:
                self._cancelled.append(request)

        return Ticket(mailbox, cancel)

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling | Sequence[Sampling]
    ) -> list[Generation]:
        """Generations of all prompts, in order. Raises RequestError before anything runs."""
        settings = [sampling] * len(prompts) if isinstance(sampling, Sampling) else list(sampling)
        for prompt, wanted in zip(prompts, settings, strict=True):
            self.check(len(prompt.ids), wanted)
        tickets = [self.submit(*pair) for pair in zip(prompts, settings, strict=True)]
        return [ticket.result() for ticket in tickets]

    def _serve(self) -> None:
        """The loop, while there is work."""
        while True:
            start = time.perf_counter()
            with self._lock:
                arrived, self._arrived = self._arrived, []
                for request in arrived:
                    self.scheduler.add(request)
                if not threading.main_thread().is_alive():  # Python exits
                    self._cancelled.extend(self._mailboxes)
                while self._cancelled:
                    self._finish(self._cancelled.popleft(), "cancelled")
                if not self.scheduler.busy:
                    self._thread = None
                    return
            try:
                spans = self.scheduler.plan()
                self.stats.peak_pages = max(self.stats.peak_pages, self.pages.used)
                self._step(spans)
            except BaseException as error:  # a fault of our own: nobody may wait for ever
                log.exception("the engine failed; every request ends")
                for request in [*self.scheduler.running, *self.scheduler.waiting]:
                    self._end(request, error)
            self.stats.steps += 1
            self.stats.busy_seconds += time.perf_counter() - start

    def _step(self, spans: Sequence[Span]) -> None:
        """Compute the spans, and choose a token for every request that is complete."""
        try:
            complete, logits = self._forward(spans)
        except Exception as error:
            if len(spans) > 1:  # whose fault is it? Each again alone: what is written twice is the same
                for span in spans:
                    self._step([span])
            else:
                self._end(spans[0].request, error)
            return
        self.scheduler.done(spans)
        if logits is None:
            return
        rows: list[Row] = []
        places: list[int] = []  # of those whose form can say what may come
        for place, request in enumerate(complete):
            try:
                rows.append(request.row(logits.shape[-1]))
                places.append(place)
            except Exception as error:
                self._end(request, error)
        for place, chosen in zip(places, choose(logits[places], rows), strict=True):
            self._accept(complete[place], chosen)

    def _forward(self, spans: Sequence[Span]) -> tuple[list[Request], Tensor | None]:
        """The model's part: → the requests whose next token can be chosen, and its logits (R, V)."""
        decoding = [span for span in spans if self._decodes(span)]
        prompts = [span for span in spans if not self._decodes(span)]
        start = time.perf_counter()
        logits = []
        if decoding:
            logits.append(
                self.decoder.decode(
                    [span.request.tokens[-1].id for span in decoding],
                    [span.start for span in decoding],
                    [span.request.pages for span in decoding],
                    self.cache,
                )
            )
        if prompts:
            chunks = [
                Chunk(span.start, span.count, self.cache.slots(span.request.pages, span.stop), span.complete)
                for span in prompts
            ]
            after = self.decoder.prefill(self._embeddings(prompts), chunks, self.cache)  # (complete ones, V)
            if len(after):
                logits.append(after)
            self.stats.prompt_tokens += sum(span.count for span in prompts)
        self.stats.forward_seconds += time.perf_counter() - start
        complete = [span.request for span in (*decoding, *prompts) if span.complete]
        return complete, torch.cat(logits) if logits else None

    def _decodes(self, span: Span) -> bool:
        """Whether only the token that was generated last is to be computed."""
        return span.complete and span.count == 1 and len(span.request.tokens) > 0

    @torch.inference_mode()
    def _embeddings(self, spans: Sequence[Span]) -> Tensor:
        """Embeddings of the spans' tokens, one span after the other, image tokens in their places: (N, Dt)."""
        ids = [one for span in spans for one in span.request.ids(span.start, span.stop)]
        embeddings = self.decoder.embed(ids)  # (N, Dt)
        seen = [
            (offset - span.start, span, place)
            for offset, span in zip(_offsets(spans), spans, strict=True)
            for place in span.request.places
            if place.start < span.stop and span.start < place.stop
        ]
        encoded = self.images.get([place.image for _, _, place in seen])
        for (shift, span, place), tokens in zip(seen, encoded, strict=True):
            first, last = max(place.start, span.start), min(place.stop, span.stop)
            embeddings[shift + first : shift + last] = tokens[first - place.start : last - place.start]
        return embeddings

    def _accept(self, request: Request, chosen: Token | VisionLMError) -> None:
        """The next token of a request, or why it has none."""
        try:
            if isinstance(chosen, VisionLMError):
                raise chosen
            request.accept(chosen)
        except Exception as error:
            self._end(request, error)
            return
        self.stats.generated_tokens += 1
        if request.certain > request.sent:
            self._mailboxes[request].put(request.tokens[request.sent : request.certain])
            request.sent = request.certain
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


def _offsets(spans: Sequence[Span]) -> Iterator[int]:
    """Where each span begins when they stand one after the other."""
    return itertools.accumulate((span.count for span in spans[:-1]), initial=0)


def default_cache_tokens(decoder: TorchDecoder) -> int:
    """Tokens to keep, unless told otherwise: see CACHE_TOKENS."""
    fitting = CACHE_BYTES // bytes_per_token(decoder.config, decoder.dtype)
    return max(min(CACHE_TOKENS, fitting), decoder.config.max_position_embeddings)
