"""The scheduler and its pages, driven at random against a simple model of both."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from dataclasses import dataclass, field

import pytest

from vision_lm.engine.pages import PAGE, Pages, pages_for, seals
from vision_lm.engine.request import Prompt, Request
from vision_lm.engine.sampling import Sampling, Token
from vision_lm.engine.scheduler import Limits, Scheduler, Span


def next_token(contents: list[bytes]) -> int:
    """A "language model": the next token depends on every token before it."""
    return int.from_bytes(hashlib.blake2b(b"".join(contents), digest_size=2).digest(), "little")


def expected_tokens(prompt: Prompt, count: int) -> list[int]:
    """What a request must say, from its prompt alone."""
    contents = Request(0, prompt, Sampling(max_tokens=count), -1).contents
    tokens = []
    for _ in range(count):
        tokens.append(next_token(contents))
        contents.append(b"t" + tokens[-1].to_bytes(4, "little"))
    return tokens


@dataclass
class Model:
    """A cache memory that really holds what is written, and checks of what the scheduler may do with it."""

    scheduler: Scheduler
    memory: dict[int, bytes] = field(default_factory=dict)  # by slot
    alive: list[Request] = field(default_factory=list)

    def step(self) -> list[Request]:
        """Plan, compute, check; → the requests that have finished."""
        before = {request: request.pending for request in self.scheduler.running}
        spans = self.scheduler.plan()
        self.check_plan(spans, before)
        for span in spans:
            self.write(span)
        complete = [span.request for span in spans if span.complete]
        self.scheduler.done(spans)
        finished = []
        for request in complete:
            read = [self.memory[slot] for slot in slots(request)[: request.length]]
            request.accept(Token(next_token(read), -1.0))
            if request.finish_reason:
                self.leave(request)
                finished.append(request)
        self.check_pages()
        return finished

    def leave(self, request: Request) -> None:
        self.scheduler.remove(request)
        self.alive.remove(request)

    def write(self, span: Span) -> None:
        """Compute a span: all before it must be in memory already."""
        where, contents = slots(span.request), span.request.contents
        assert [self.memory.get(slot) for slot in where[: span.start]] == contents[: span.start]
        for place in range(span.start, span.stop):
            self.memory[where[place]] = contents[place]

    def check_plan(self, spans: list[Span], before: dict[Request, int]) -> None:
        limits, running = self.scheduler.limits, self.scheduler.running
        assert bool(spans) == bool(self.alive)
        assert len({span.request for span in spans}) == len(spans)
        assert sum(span.count for span in spans) <= limits.step_tokens
        assert len(running) <= limits.running
        assert running == sorted(running, key=lambda one: one.number)
        planned = {span.request: span for span in spans}
        for span in spans:
            assert span.request in running
            assert span.start == span.request.computed
            assert 0 < span.count <= span.request.pending
        decoding = [request for request, pending in before.items() if pending == 1 and request in running]
        assert all(request in planned for request in decoding), "a stream was held up"
        if decoding:
            assert sum(span.count for span in spans if span.request not in decoding) <= limits.chunk
        if before:  # the oldest is never preempted, and always goes on
            oldest = min(before, key=lambda one: one.number)
            assert oldest in planned or len(decoding) >= limits.chunk

    def check_pages(self) -> None:
        """Every page is free, idle or held, and only equal contents are shared."""
        pages = self.scheduler.pages
        users = Counter(page for request in self.alive for page in request.pages)
        assert len(users) == pages.used <= pages.count
        assert [users[page] for page in range(pages.count)] == pages._users
        held: dict[int, list[bytes]] = {}
        for request in self.alive:
            assert len(request.pages) >= pages_for(request.computed)
            for number, page in enumerate(request.pages):
                history = request.contents[: (number + 1) * PAGE]
                if users[page] > 1:
                    assert len(history) == (number + 1) * PAGE
                    assert held.setdefault(page, history) == history


def slots(request: Request) -> list[int]:
    return [page * PAGE + place for page in request.pages for place in range(PAGE)]


@pytest.mark.parametrize("seed", range(4))
def test_random_arrivals_cancels_and_page_pressure(seed: int) -> None:
    """10,000 steps in all: every request says exactly what its prompt demands, whatever happens around it."""
    chance = random.Random(seed)
    limits = Limits(running=chance.choice((2, 6, 12)), step_tokens=chance.choice((16, 64, 300)), chunk=12)
    scheduler = Scheduler(Pages(chance.choice((12, 20, 60))), limits)
    model, finished, cancelled = Model(scheduler), 0, 0
    starts = [[chance.randrange(50) for _ in range(chance.choice((15, 16, 40, 70)))] for _ in range(5)]
    number = 0
    for _ in range(2500):
        load = chance.choice((0, 0, 1, 3)) if len(model.alive) < 25 else 0
        for _ in range(load):
            start = chance.choice(starts) if chance.random() < 0.7 else []
            ids = [*start, *(chance.randrange(50) for _ in range(chance.randint(1, 60)))]
            request = Request(number, Prompt(ids), Sampling(max_tokens=chance.randint(1, 50)), -1)
            number += 1
            scheduler.add(request)
            model.alive.append(request)
        if model.alive and chance.random() < 0.05:
            model.leave(chance.choice(model.alive))
            cancelled += 1
        for request in model.step():
            tokens = [token.id for token in request.tokens]
            assert tokens == expected_tokens(request.prompt, len(tokens))
            assert len(tokens) == request.sampling.max_tokens
            finished += 1
    while model.alive:
        model.step()
    assert finished > 150 and cancelled > 40
    assert scheduler.pages.used == 0
    assert scheduler.shared_tokens > 0
    if scheduler.pages.count < 60:
        assert scheduler.preemptions > 0


def test_least_recently_used_prefixes_go_first_and_from_their_ends() -> None:
    """Of idle pages those used longest ago are evicted, of one sequence the last page first."""
    pages = Pages(4)
    contents = [[bytes([name, place, 0, 0, 0]) for place in range(2 * PAGE)] for name in range(2)]
    for sequence in contents:
        taken = pages.take(2)
        assert taken is not None
        for page, seal in zip(taken, seals(sequence), strict=True):
            pages.seal(page, seal)
        pages.release(taken)
    first, second = (seals(sequence) for sequence in contents)
    assert pages.available == 4
    pages.release(pages.find(first))  # now the second is the older
    assert pages.take(1) is not None
    found = pages.find(second)
    assert len(found) == 1
    assert len(pages.find(first)) == 2
    assert pages.take(1) is None
    pages.release(found)
    assert pages.take(2) is None


def test_a_prefix_is_its_whole_history() -> None:
    """The same page after another beginning, or other tokens that look alike as bytes, have other seals."""
    one = [bytes([place]) * 5 for place in range(3 * PAGE)]
    other = [b"other", *one[1:]]
    assert len(seals(one)) == 3
    assert not set(seals(one)) & set(seals(other))
    assert seals(one)[1:] == seals(one, 1, seals(one)[0])
    assert seals(one[: 2 * PAGE + 3]) == seals(one)[:2]
