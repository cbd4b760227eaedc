"""Who computes what in the next step: continuous batching with chunked prefill, preemption and shared prefixes.

In every step each running sequence that only lacks its last token gets it (decode); the rest of the step's
tokens go to prompts (prefill), oldest first, a chunk at a time, so that a long prompt never holds up those that
are being read. When pages run out, the youngest sequence gives its own back and starts again later (preemption
by recompute), so the oldest always comes to its end. After Sarathi-Serve (arXiv 2403.02310) and vLLM.

A picture whose tokens see each other is never cut: where it is larger than a chunk, it has a step's prefill to itself.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

from vision_lm.engine.pages import PAGE, Pages, pages_for
from vision_lm.engine.request import Request


@dataclass(frozen=True)
class Limits:
    """How much of everything one step may hold."""

    running: int = 64  # sequences at once
    step_tokens: int = 2048  # of a step, decode and prefill together
    chunk: int = 256  # of prefill beside sequences that decode: what these wait for


@dataclass(slots=True)  # frozen ones take three times as long to make
class Span:
    """Tokens of one request to compute in this step."""

    request: Request
    start: int
    count: int

    @property
    def stop(self) -> int:
        return self.start + self.count

    @property
    def prompt_tokens(self) -> int:
        """How many of them are the prompt's."""
        return max(min(self.stop, len(self.request.prompt.ids)) - self.start, 0)

    @property
    def complete(self) -> bool:
        """Whether a next token can be chosen after it."""
        return self.stop == self.request.length


class Scheduler:
    """Requests that wait and requests that run, and the pages between them."""

    def __init__(self, pages: Pages, limits: Limits) -> None:
        self.pages, self.limits = pages, limits
        self.waiting: list[Request] = []  # by arrival
        self.running: list[Request] = []  # by arrival
        self.preemptions = 0
        self.shared_tokens = 0  # found in the cache instead of computed

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.running)

    def add(self, request: Request) -> None:
        bisect.insort(self.waiting, request, key=_arrival)

    def remove(self, request: Request) -> None:
        """It is finished, failed or cancelled: its pages are free at once."""
        if request in self.running:
            self.running.remove(request)
        elif request in self.waiting:
            self.waiting.remove(request)
        self._give_back(request)

    def plan(self) -> list[Span]:
        """The next step. Empty only when nothing waits or runs."""
        spans: dict[Request, Span] = {}
        left = self.limits.step_tokens
        for request in list(self.running):
            if request.pending == 1 and self._grow(request, 1, spans):
                spans[request] = Span(request, request.computed, 1)
                left -= 1
        if spans:
            left = min(left, self.limits.chunk)
        prefill = left
        for request in [one for one in self.running if one not in spans]:
            count = _portion(request, left, prefill)
            if count > 0 and self._grow(request, count, spans):
                spans[request] = Span(request, request.computed, count)
                left -= count
        return [*spans.values(), *self._admit(left, prefill)]

    def done(self, spans: Sequence[Span]) -> None:
        """These have been computed: their full pages may now be shared."""
        for span in spans:
            request = span.request
            request.computed = span.stop
            for page in range(request.sealed, request.computed // PAGE):
                self.pages.seal(request.pages[page], request.seals[page])
                request.sealed += 1

    def _grow(self, request: Request, count: int, spans: dict[Request, Span]) -> bool:
        """Pages for `count` more tokens of a running request; younger ones are preempted for it, or it is itself."""
        if request.computed + count <= len(request.pages) * PAGE:
            return True
        while request in self.running:
            missing = pages_for(request.computed + count) - len(request.pages)
            taken = self.pages.take(max(missing, 0))
            if taken is not None:
                request.pages += taken
                return True
            victim = self.running[-1]
            spans.pop(victim, None)
            self._preempt(victim)
        return False

    def _preempt(self, request: Request) -> None:
        self.preemptions += 1
        self.running.remove(request)
        self._give_back(request)
        self.add(request)

    def _give_back(self, request: Request) -> None:
        self.pages.release(request.pages)
        request.pages, request.computed, request.sealed = [], 0, 0

    def _admit(self, left: int, prefill: int) -> list[Span]:
        """Let waiting requests in, by arrival, while there are pages and `left` of the step's `prefill` tokens.

        One whose next page is just being computed for another waits a step and finds it then.
        """
        if not self.waiting:
            return []
        coming = {seal for request in self.running for seal in request.seals[request.sealed :]}
        admitted: list[Span] = []
        for request in list(self.waiting):
            if left <= 0 or len(self.running) >= self.limits.running:
                break
            sharable = request.seals[: (request.length - 1) // PAGE]  # the last token is always computed
            shared = self.pages.find(sharable)
            if len(shared) < len(sharable) and sharable[len(shared)] in coming:
                self.pages.release(shared)
                continue
            missing = pages_for(request.length) - len(shared)
            spare = len(self.running) // 2  # for those that run: about a page each within the next steps
            taken = self.pages.take(missing) if missing + spare <= self.pages.available else None
            if taken is None:
                self.pages.release(shared)
                break
            request.pages = shared + taken
            request.sealed = len(shared)
            request.computed = len(shared) * PAGE
            count = _portion(request, left, prefill)
            if not count:
                self._give_back(request)
                break
            self.shared_tokens += request.computed
            self.waiting.remove(request)
            bisect.insort(self.running, request, key=_arrival)
            admitted.append(Span(request, request.computed, count))
            coming.update(request.seals[request.sealed :])
            left -= count
        return admitted


def _portion(request: Request, left: int, prefill: int) -> int:
    """How many of its tokens to compute where `left` of a step's `prefill` tokens are left.

    Tokens that see each other are computed together: where they are more than that, once nothing else is.
    """
    count = min(request.pending, left)
    if request.computed < request.prefix > request.computed + count:
        return request.prefix - request.computed if left == prefill > 0 else 0
    return count


def _arrival(request: Request) -> int:
    return request.number
