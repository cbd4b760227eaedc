"""An engine and its readers: a token as soon as there is one, nothing for those who left, and no thread after the last."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
from torch import Tensor

from tests.noise_pictures import engine_of, random_decoder
from vision_lm.engine import Prompt, Sampling, Ticket, TorchDecoder


@pytest.fixture(scope="module")
def decoder() -> TorchDecoder:
    return random_decoder()


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
    stream = iter(ticket)  # which would cancel the request if nobody held it
    next(stream)
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
    first.join(timeout=20)
    assert not first.is_alive()
    assert gone() is None


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
