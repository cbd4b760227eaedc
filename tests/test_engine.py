"""The engine at its own door: batches, pages, prefixes, streams, cancelling, and faults."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import logging
import random
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.conftest import random_phi, text_config
from vision_lm.engine import Engine, Generation, Limits, Prompt, Sampling, Ticket, TorchDecoder
from vision_lm.engine.pages import PAGE
from vision_lm.errors import RequestError, VisionLMError

PLACEHOLDER = 90  # of the 96 rows of the random models, none of which a test's text uses
IMAGE_TOKENS = 20  # more than a page, and no multiple of it


@dataclasses.dataclass(frozen=True)
class Noise:
    """A picture: image tokens drawn from its number."""

    number: int

    @property
    def digest(self) -> bytes:
        return self.number.to_bytes(16, "little")


def encode(images: Sequence[Noise]) -> list[Tensor]:
    return [
        torch.randn(IMAGE_TOKENS, 64, generator=torch.Generator().manual_seed(image.number))
        for image in images
    ]


@pytest.fixture(scope="module")
def decoder() -> TorchDecoder:
    torch.manual_seed(0)
    config = text_config()
    return TorchDecoder(config, random_phi(config).state_dict(), torch.device("cpu"), torch.float32)


def engine_of(decoder: TorchDecoder, **limits: Any) -> Engine:
    cache_tokens = limits.pop("cache_tokens", 4096)
    return Engine(decoder, encode, PLACEHOLDER, limits=Limits(**limits), cache_tokens=cache_tokens)


@pytest.fixture(scope="module")
def prompts() -> list[Prompt]:
    """Texts of 1 to 60 tokens about none to two of five pictures; some share a beginning."""
    chance = random.Random(1)
    result = []
    for number in range(40):
        images = [Noise(chance.randrange(5)) for _ in range(number % 3)]
        text = [chance.randrange(80) for _ in range(chance.randint(1, 60))]
        start = list(range(40)) if number % 4 == 0 else []
        result.append(Prompt([*start, *[PLACEHOLDER] * IMAGE_TOKENS * len(images), *text], images))
    return result


SETTINGS = [Sampling(max_tokens=1 + 7 * n % 30, stop_ids=frozenset(range(12))) for n in range(40)]


@pytest.fixture(scope="module")
def alone(decoder: TorchDecoder, prompts: list[Prompt]) -> list[Generation]:
    """Every prompt in an engine of its own, in one piece: what all others must equal."""
    return [
        engine_of(decoder).generate([prompt], one)[0] for prompt, one in zip(prompts, SETTINGS, strict=True)
    ]


@pytest.mark.parametrize(
    "limits",
    [
        {},
        {"running": 3},
        {"chunk": 5, "step_tokens": 9, "running": 8},  # prompts in many pieces, beside those that decode
        {"cache_tokens": 160, "chunk": 7},  # room for one or two: preempted again and again
    ],
    ids=["at once", "three at once", "in pieces", "short of pages"],
)
def test_an_answer_is_the_same_alone_in_any_batch_in_pieces_and_after_preemption(
    decoder: TorchDecoder, prompts: list[Prompt], alone: list[Generation], limits: dict[str, Any]
) -> None:
    """40 requests that come together, twice: the second time with every prefix in the cache."""
    engine = engine_of(decoder, **limits)
    for _ in range(2):
        together = engine.generate(prompts, SETTINGS)
        assert [one.tokens for one in together] == [one.tokens for one in alone]
        assert [one.finish_reason for one in together] == [one.finish_reason for one in alone]
        for one, other in zip(together, alone, strict=True):
            assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
    assert {one.finish_reason for one in alone} >= {"stop", "length"}
    assert (engine.scheduler.preemptions > 0) == ("cache_tokens" in limits)
    assert engine.scheduler.shared_tokens > 0
    assert engine.stats.peak_pages <= engine.pages.count
    assert engine.pages.used == 0


def test_a_picture_is_encoded_once_and_its_prefix_computed_once(decoder: TorchDecoder) -> None:
    """32 questions about one picture that come together: one encoding, and its full pages are computed once."""
    engine = engine_of(decoder)
    picture, start = Noise(7), [1, 2, 3]
    questions = [
        Prompt([*start, *[PLACEHOLDER] * IMAGE_TOKENS, 5 + number, 60], [picture]) for number in range(32)
    ]
    engine.generate(questions, Sampling(max_tokens=3))
    length, shared = len(questions[0].ids), (len(start) + IMAGE_TOKENS) // PAGE * PAGE
    assert engine.images.encoded == 1
    assert engine.stats.prompt_tokens == length + 31 * (length - shared)
    engine.generate([Prompt([*start, *[PLACEHOLDER] * IMAGE_TOKENS, 5], [Noise(8)])], Sampling(max_tokens=3))
    assert engine.images.encoded == 2  # another picture in the same place is no hit


def test_a_long_prompt_does_not_hold_up_those_that_decode(decoder: TorchDecoder) -> None:
    """While 200 tokens are prefilled ten at a time, a stream that runs gets a token in every step."""
    engine = engine_of(decoder, chunk=10)
    sizes: list[tuple[int, int]] = []
    run = engine.runner.run

    def watched(spans: Any) -> Any:
        sizes.append((sum(span.count == 1 for span in spans), sum(s.count for s in spans if s.count > 1)))
        return run(spans)

    engine.runner.run = watched  # type: ignore[method-assign]
    running = iter(engine.submit(Prompt([5, 6, 7]), Sampling(max_tokens=100)))
    next(running)
    engine.submit(Prompt([n % 80 for n in range(200)]), Sampling(max_tokens=1)).result()
    running.close()
    prefills = [one for one in sizes[1:] if one[1]]
    assert len(prefills) >= 20
    assert all(decoding == 1 and chunk <= 10 for decoding, chunk in prefills)


def test_streamed_tokens_are_the_generation(
    decoder: TorchDecoder, prompts: list[Prompt], alone: list[Generation]
) -> None:
    """Iterating over a ticket gives exactly the generation's tokens, sync and async, also where a loop is dropped."""
    engine = engine_of(decoder)
    reasons = set()
    settings = [Sampling(max_tokens=120, stop_ids=frozenset(range(12)))] * len(prompts)
    whole = engine.generate(prompts, settings)
    tickets = [engine.submit(*pair) for pair in zip(prompts, settings, strict=True)]
    for ticket, generation in zip(tickets, whole, strict=True):
        stream, streamed = iter(ticket), []
        while True:
            try:
                streamed.append(next(stream))
            except StopIteration as end:
                assert end.value.tokens == generation.tokens
                break
        assert tuple(token.id for token in streamed) == generation.tokens
        reasons.add(generation.finish_reason)
    assert reasons >= {"stop", "repetition"}

    async def read(ticket: Ticket) -> list[int]:
        return [token.id async for token in ticket]

    async def read_all() -> list[list[int]]:
        tickets = [engine.submit(*pair) for pair in zip(prompts, settings, strict=True)]
        return await asyncio.gather(*map(read, tickets))

    assert [tuple(ids) for ids in asyncio.run(read_all())] == [one.tokens for one in whole]

    async def wait() -> Generation:
        return await engine.submit(prompts[3], SETTINGS[3])

    assert asyncio.run(wait()).tokens == alone[3].tokens


class Gate:
    """Stops the engine before each decode step until `let` lets it through to the next."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.arrived, self.permits = threading.Semaphore(0), threading.Semaphore(0)
        decode = TorchDecoder.decode

        def waiting(decoder: TorchDecoder, *arguments: Any) -> Tensor:
            self.arrived.release()
            assert self.permits.acquire(timeout=60)
            return decode(decoder, *arguments)

        monkeypatch.setattr(TorchDecoder, "decode", waiting)

    def let(self, steps: int) -> None:
        for _ in range(steps):
            assert self.arrived.acquire(timeout=60)
            self.permits.release()
        assert self.arrived.acquire(timeout=60)  # at the next step
        self.arrived.release()


def test_the_first_token_is_streamed_before_the_second_is_computed(
    decoder: TorchDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream does not wait for the whole answer."""
    gate = Gate(monkeypatch)
    stream = iter(engine_of(decoder).submit(Prompt([1, 2, 3]), Sampling(max_tokens=5)))
    assert next(stream).logprob < 0
    gate.permits.release(100)
    stream.close()


def ways_to_leave(ticket: list[Ticket]) -> Iterator[str]:
    """Everything that a reader does who does not want the rest."""
    ticket[0].cancel()
    yield "cancelled"
    stream = iter(ticket[1])
    next(stream)
    stream.close()
    yield "stream closed"
    del stream
    ticket[2] = None  # type: ignore[call-overload]
    gc.collect()
    yield "forgotten"

    async def give_up(one: Ticket) -> None:
        task = asyncio.ensure_future(one._finished())
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(give_up(ticket[3]))
    yield "task cancelled"


def test_whoever_stops_reading_frees_its_pages_within_a_step(
    decoder: TorchDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cancelled, closed, forgotten or given up: after the step in progress the pages are free; the others go on."""
    gate = Gate(monkeypatch)
    engine = engine_of(decoder)
    settings = [Sampling(max_tokens=200, temperature=50.0, seed=n) for n in range(5)]  # no end, no loop
    tickets = [engine.submit(Prompt([one.seed or 0] * 40), one) for one in settings]
    gate.let(30)
    stays = tickets.pop()
    held = engine.pages.used
    for left, _ in enumerate(ways_to_leave(tickets), start=1):
        gate.let(1)  # the step in progress; at the next one
        assert len(engine.scheduler.running) == 5 - left
        assert engine.pages.used <= held - 4  # of 70 tokens
        held = engine.pages.used
    assert tickets[0].result().finish_reason == "cancelled"
    gate.permits.release(1000)
    assert len(stays.result().tokens) == 200
    assert engine.pages.used == 0


def test_a_fault_ends_only_the_request_that_has_it(
    decoder: TorchDecoder, prompts: list[Prompt], alone: list[Generation]
) -> None:
    """A picture that cannot be encoded raises for its own request; all others get their answers."""

    def fails(images: Sequence[Noise]) -> list[Tensor]:
        if any(image.number == 99 for image in images):
            raise VisionLMError("this picture cannot be encoded")
        return encode(images)

    engine = Engine(decoder, fails, PLACEHOLDER, cache_tokens=4096)
    bad = Prompt([*[PLACEHOLDER] * IMAGE_TOKENS, 3], [Noise(99)])
    tickets = [engine.submit(*pair) for pair in zip(prompts[:10], SETTINGS[:10], strict=True)]
    failed = engine.submit(bad, SETTINGS[0])
    tickets += [engine.submit(*pair) for pair in zip(prompts[10:20], SETTINGS[10:20], strict=True)]
    with pytest.raises(VisionLMError, match="this picture"):
        failed.result()
    assert [ticket.result().tokens for ticket in tickets] == [one.tokens for one in alone[:20]]
    assert engine.pages.used == 0


def heard(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """The log reaches `caplog`, whatever a command or a server in this process has made of it."""
    monkeypatch.setattr(logging.getLogger("vision_lm"), "propagate", True)
    caplog.set_level(logging.WARNING, logger="vision_lm")


def test_out_of_memory_makes_smaller_steps_and_no_wrong_answer(
    decoder: TorchDecoder,
    prompts: list[Prompt],
    alone: list[Generation],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Where a step of more than 300 tokens has no memory, all answers still come, and the log says it once or twice."""
    prefill, all_wait = TorchDecoder.prefill, threading.Event()

    def narrow(self: TorchDecoder, embeddings: Tensor, *arguments: Any) -> Tensor:
        all_wait.wait()  # so that the second step is large, however slowly requests come
        if len(embeddings) > 300:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return prefill(self, embeddings, *arguments)

    monkeypatch.setattr(TorchDecoder, "prefill", narrow)
    heard(monkeypatch, caplog)
    engine = engine_of(decoder)
    tickets = [engine.submit(*pair) for pair in zip(prompts, SETTINGS, strict=True)]
    all_wait.set()
    assert [ticket.result().tokens for ticket in tickets] == [one.tokens for one in alone]
    assert engine.scheduler.limits.step_tokens <= 1024
    assert 1 <= len(caplog.records) <= 3
    assert "out of memory in a step of 2048 tokens" in caplog.text


def test_a_cache_without_memory_is_made_smaller(
    decoder: TorchDecoder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Half, and half again, but always one full context; then the error is the caller's."""
    room, empty = 40, torch.empty

    def narrow(shape: Any, *arguments: Any, **options: Any) -> Tensor:
        if shape[2] > room * PAGE:
            raise RuntimeError(
                "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"
            )
        return empty(shape, *arguments, **options)

    monkeypatch.setattr(torch, "empty", narrow)
    heard(monkeypatch, caplog)
    assert engine_of(decoder, cache_tokens=100 * PAGE).pages.count == 25
    assert len(caplog.records) == 2
    room = 10
    with pytest.raises(RuntimeError, match="allocate"):
        engine_of(decoder, cache_tokens=100 * PAGE)


@pytest.mark.parametrize(
    ("length", "max_tokens", "cache", "said"),
    [
        (200, 57, 4096, r"the prompt has 200 tokens.*max_tokens 57 of the model's 256 positions.*199"),
        (100, 57, 128, r"the prompt has 100 tokens.*max_tokens 57 of a cache of 128 .*71"),
        (0, 5, 4096, "the prompt is empty"),
    ],
)
def test_what_cannot_fit_is_refused_before_anything_runs(
    decoder: TorchDecoder, length: int, max_tokens: int, cache: int, said: str
) -> None:
    """The error gives the numbers, and the good prompts of the list are not started either."""
    engine = engine_of(decoder, cache_tokens=cache)
    with pytest.raises(RequestError, match=said):
        engine.generate([Prompt([1]), Prompt([1] * length)], Sampling(max_tokens=max_tokens))
    assert engine.stats.steps == 0


def test_a_seed_gives_the_same_sample_in_any_batch(decoder: TorchDecoder, prompts: list[Prompt]) -> None:
    """A seeded request answers alike alone, again, preempted and among others; another seed answers otherwise."""
    settings = [Sampling(max_tokens=20, temperature=1.0, top_p=0.95, seed=n) for n in range(40)]
    together = [one.tokens for one in engine_of(decoder).generate(prompts, settings)]
    squeezed = [one.tokens for one in engine_of(decoder, cache_tokens=160).generate(prompts, settings)]
    engine = engine_of(decoder)
    one_by_one = [engine.generate([p], s)[0].tokens for p, s in zip(prompts, settings, strict=True)]
    assert together == one_by_one == squeezed
    assert len({engine.generate([prompts[0]], one)[0].tokens for one in settings[:20]}) > 15


@pytest.mark.parametrize("at_work", [True, False])
def test_python_exits_at_once_whatever_the_engine_is_doing(at_work: bool) -> None:
    """A program that ends with requests under way, or right after an answer, ends cleanly and soon."""
    program = f"""
import time, torch
from tests.conftest import random_phi, text_config
from vision_lm.engine import Engine, Prompt, Sampling, TorchDecoder
config = text_config(max_position_embeddings=4096)
decoder = TorchDecoder(config, random_phi(config).state_dict(), torch.device("cpu"), torch.float32)
decode = decoder.decode
decoder.decode = lambda *arguments: (time.sleep(0.05), decode(*arguments))[1]
engine = Engine(decoder, lambda images: [], -1)
engine.generate([Prompt([1, 2])], Sampling(max_tokens=2))
if {at_work}:
    ticket = engine.submit(Prompt([1, 2, 3]), Sampling(max_tokens=4000, temperature=50.0, seed=1))
    next(iter(ticket))
print(time.time())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    seconds = time.time() - float(done.stdout)
    assert (done.returncode, done.stderr) == (0, "")
    assert seconds < 20  # of the 200 that the answer would have taken


def test_one_thread_computes_all_and_ends_with_its_engine(
    decoder: TorchDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the engine has been idle in between; an idle engine is kept by nobody but its user."""
    threads: list[threading.Thread] = []
    prefill = TorchDecoder.prefill

    def watched(self: TorchDecoder, *arguments: Any) -> Tensor:
        threads.append(threading.current_thread())
        return prefill(self, *arguments)

    monkeypatch.setattr(TorchDecoder, "prefill", watched)
    engine = engine_of(decoder)
    for start in (1, 2):
        engine.generate([Prompt([start])], Sampling(max_tokens=2))
        engine.wait()
        assert not engine.scheduler.busy
        time.sleep(0.05)  # it sleeps now, if it will
    first, second = threads
    assert first is second and first.is_alive()
    gone = weakref.ref(engine)
    del engine
    gc.collect()
    assert gone() is None
    first.join(timeout=20)
    assert not first.is_alive()


def test_an_engine_that_is_dropped_at_work_ends_too(
    decoder: TorchDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With it and its ticket nobody is left to read: the thread leaves the request, and ends."""
    gate = Gate(monkeypatch)
    before = set(threading.enumerate())
    engine = engine_of(decoder)
    ticket = engine.submit(Prompt([1, 2, 3]), Sampling(max_tokens=200, temperature=50.0, seed=1))
    gate.let(2)
    (thread,) = set(threading.enumerate()) - before
    gone = weakref.ref(engine)
    del engine, ticket
    gc.collect()
    gate.permits.release()  # the step in progress; another would wait for a minute
    thread.join(timeout=20)
    assert not thread.is_alive()
    assert gone() is None
