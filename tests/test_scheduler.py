"""The scheduler and its pages, driven at random against a simple model of both."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

import pytest

from tests.noise_pictures import PLACEHOLDER, Noise
from vision_lm.engine.pages import PAGE, Pages, pages_for, seals
from vision_lm.engine.request import Prompt, Request
from vision_lm.engine.sampling import Sampling, Token
from vision_lm.engine.scheduler import Limits, Scheduler, Span


def next_token(contents: list[bytes]) -> int:
    """A "language model": the next token depends on every token before it."""
    return int.from_bytes(hashlib.blake2b(b"".join(contents), digest_size=2).digest(), "little")


def expected_tokens(prompt: Prompt, count: int) -> list[int]:
    """What a request must say, from its prompt alone."""
    contents = Request(0, prompt, Sampling(max_tokens=count), PLACEHOLDER).contents
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
    found: int = 0  # pictures of which at least the first tokens were in the cache when their request came in

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
        together = [span for span in spans if span.start < span.request.prefix]  # tokens that see each other
        assert all(span.stop >= span.request.prefix for span in together), "a picture was cut"
        decoding = [request for request, pending in before.items() if pending == 1 and request in running]
        prefilled = [span.count for span in spans if span.request not in decoding]
        chunk = limits.chunk if decoding else limits.step_tokens
        # One picture that is larger may have a step's prefill to itself.
        large = [span.request.prefix for span in together if span.request.prefix > chunk - len(decoding)]
        assert sum(prefilled) <= chunk or (len(large) == len(prefilled) == 1 and prefilled == large)
        assert large or sum(span.count for span in spans) <= limits.step_tokens
        assert len(running) <= limits.running
        assert running == sorted(running, key=lambda one: one.number)
        admitted = [span for span in spans if span.request not in before]
        self.found += sum(place.start < span.start for span in admitted for place in span.request.places)
        planned = {span.request: span for span in spans}
        for span in spans:
            assert span.request in running
            assert span.start == span.request.computed
            assert 0 < span.count <= span.request.pending
        assert all(request in planned for request in decoding), "a stream was held up"
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


def random_prompt(chance: random.Random, starts: list[list[int]], size: int) -> Prompt:
    """Up to 60 tokens of text, often after a beginning that others have; and before, behind or between none to two
    pictures of `size` tokens, of which there are four.
    """

    def text(most: int) -> list[int]:
        return [chance.randrange(50) for _ in range(chance.randint(0, most))]

    start = chance.choice(starts) if chance.random() < 0.5 else []
    images = [Noise(chance.randrange(4)) for _ in range(chance.choice((0, 0, 1, 1, 2)))]
    ids = list(start)
    for _ in images:
        ids += [PLACEHOLDER] * size + text(6)
    return Prompt([*ids, *text(60 - 30 * len(images)), 7], images)


@pytest.mark.parametrize("attention", ["causal", "prefix"])
@pytest.mark.parametrize("seed", range(4))
def test_random_arrivals_cancels_and_page_pressure(seed: int, attention: Literal["causal", "prefix"]) -> None:
    """10,000 steps of either attention: every request, with pictures or without, says exactly what its prompt demands,
    whatever happens around it.
    """
    chance = random.Random(seed)
    limits = Limits(running=chance.choice((2, 6, 12)), step_tokens=chance.choice((16, 64, 300)), chunk=12)
    scheduler = Scheduler(Pages(chance.choice((12, 20, 60))), limits)
    model, finished, cancelled, seen = Model(scheduler), 0, 0, 0
    starts = [[chance.randrange(50) for _ in range(chance.choice((0, 1, 15, 16, 40, 70)))] for _ in range(7)]
    number = 0
    for _ in range(2500):
        load = chance.choice((0, 0, 1, 3)) if len(model.alive) < 25 else 0
        for _ in range(load):
            prompt, sampling = (
                random_prompt(chance, starts, size=18),
                Sampling(max_tokens=chance.randint(1, 50)),
            )
            request = Request(number, prompt, sampling, PLACEHOLDER, attention=attention)
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
            seen += len(request.places)
    while model.alive:
        model.step()
    assert finished > 150 and cancelled > 40 and seen > 100
    assert scheduler.pages.used == 0
    assert scheduler.shared_tokens > 0
    assert model.found > 20
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
