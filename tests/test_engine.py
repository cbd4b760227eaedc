"""The engine at its own door: batches, pages, prefixes, streams, and faults."""

from __future__ import annotations

import asyncio
import logging
import random
import threading
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import vision_lm.engine.engine as engine_module
from tests.engine_limits import LIMITS
from tests.noise_pictures import IMAGE_TOKENS, PLACEHOLDER, Noise, encode, engine_of, random_decoder
from vision_lm.engine import Engine, Generation, Prompt, Sampling, Ticket, TorchDecoder
from vision_lm.engine.pages import PAGE
from vision_lm.errors import RequestError, VisionLMError


@pytest.fixture(scope="module")
def decoder() -> TorchDecoder:
    return random_decoder()


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


@pytest.mark.parametrize("limits", LIMITS)
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
    run, both = engine.runner.run, threading.Event()

    def watched(spans: Any) -> Any:
        if sizes:
            both.wait()  # the stream goes on when the long prompt is there
        sizes.append((sum(span.count == 1 for span in spans), sum(s.count for s in spans if s.count > 1)))
        return run(spans)

    engine.runner.run = watched  # type: ignore[method-assign]
    running = iter(engine.submit(Prompt([5, 6, 7]), Sampling(max_tokens=100)))
    next(running)
    long = engine.submit(Prompt([n % 80 for n in range(200)]), Sampling(max_tokens=1))
    both.set()
    long.result()
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
    prefill, begun, all_wait = TorchDecoder.prefill, threading.Event(), threading.Event()

    def narrow(self: TorchDecoder, embeddings: Tensor, *arguments: Any) -> Tensor:
        begun.set()
        all_wait.wait()
        if len(embeddings) > 300:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return prefill(self, embeddings, *arguments)

    monkeypatch.setattr(TorchDecoder, "prefill", narrow)
    heard(monkeypatch, caplog)
    engine = engine_of(decoder)
    first = engine.submit(Prompt([1]), Sampling(max_tokens=1))  # in the way until all the others wait
    begun.wait()
    tickets = [engine.submit(*pair) for pair in zip(prompts, SETTINGS, strict=True)]
    all_wait.set()
    first.result()
    assert [ticket.result().tokens for ticket in tickets] == [one.tokens for one in alone]
    assert engine.scheduler.limits.step_tokens <= 1024
    assert 1 <= len(caplog.records) <= 3
    assert "out of memory in a step of 2048 tokens" in caplog.text


def test_no_memory_to_choose_tokens_costs_nobody_an_answer(
    decoder: TorchDecoder,
    prompts: list[Prompt],
    alone: list[Generation],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Rows are then chosen one after the other; a row that fails by itself ends its own request alone."""
    usual = engine_module.choose

    def narrow(logits: Tensor, rows: Sequence[Any]) -> Any:
        if len(rows) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        if logits.shape[0] == 1 and rows[0].sampling == broken:
            raise ValueError("this row cannot be chosen")
        return usual(logits, rows)

    broken = Sampling(max_tokens=7, temperature=0.123)
    monkeypatch.setattr(engine_module, "choose", narrow)
    heard(monkeypatch, caplog)
    engine = engine_of(decoder)
    failed = engine.submit(prompts[0], broken)
    tickets = [engine.submit(*pair) for pair in zip(prompts[:12], SETTINGS[:12], strict=True)]
    with pytest.raises(ValueError, match="this row"):
        failed.result()
    assert [ticket.result().tokens for ticket in tickets] == [one.tokens for one in alone[:12]]
    assert engine.pages.used == 0 and "the engine failed" not in caplog.text


def test_one_long_prompt_without_memory_is_computed_in_parts(
    decoder: TorchDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody else is there: the request whose step was too large is answered as ever, and not the one after it."""
    prompt, asked = Prompt([1 + n % 50 for n in range(240)]), Sampling(max_tokens=4)
    expected = engine_of(decoder).submit(prompt, asked).result().tokens
    prefill, sizes = TorchDecoder.prefill, []

    def narrow(self: TorchDecoder, embeddings: Tensor, *arguments: Any) -> Tensor:
        sizes.append(len(embeddings))
        if len(embeddings) > 100:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return prefill(self, embeddings, *arguments)

    monkeypatch.setattr(TorchDecoder, "prefill", narrow)
    engine = engine_of(decoder)
    assert engine.submit(prompt, asked).result().tokens == expected
    assert sizes[0] == 240 and max(sizes[-2:]) <= 100
    monkeypatch.setattr(TorchDecoder, "prefill", lambda *_: narrow(decoder, torch.empty(101, 1)))
    with pytest.raises(
        torch.OutOfMemoryError
    ):  # never enough: an end, after as many tries as there are halves
        engine_of(decoder).submit(prompt, asked).result()


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
