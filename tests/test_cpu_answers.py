"""The CPU kernels behind the engine: whatever its weights are stored in, an answer is the same whatever happens around it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.conftest import random_phi, text_config
from tests.engine_limits import LIMITS
from tests.noise_pictures import IMAGE_TOKENS, PLACEHOLDER, Noise
from vision_lm.engine import Engine, Generation, Limits, Prompt, Sampling, Ticket, make_decoder
from vision_lm.engine.cpu.decoder import CpuDecoder

WIDTH = 128  # int4's groups
GREEDY = [Sampling(max_tokens=1 + 7 * n % 20, stop_ids=frozenset(range(12))) for n in range(24)]
SEEDED = [Sampling(max_tokens=10, temperature=1.0, top_p=0.95, seed=n) for n in range(24)]
STORED: dict[str, Any] = {
    "float32": (torch.float32, None),
    "float16": (torch.float16, None),
    "bfloat16": (torch.bfloat16, None),
    "int8": (torch.bfloat16, "int8"),
    "int4": (torch.bfloat16, "int4"),
    "int8 in float32": (torch.float32, "int8"),
    "int4 in float32": (torch.float32, "int4"),
}


@dataclass(frozen=True)
class Case:
    """One decoder, and what every prompt gets of it in an engine of its own, in one piece."""

    decoder: CpuDecoder
    greedy: list[Generation]
    seeded: list[Generation]


def encode(images: Sequence[Noise]) -> list[Tensor]:
    return [
        torch.randn(IMAGE_TOKENS, WIDTH, generator=torch.Generator().manual_seed(image.number))
        for image in images
    ]


def engine_of(decoder: CpuDecoder, cache_tokens: int = 2048, **limits: Any) -> Engine:
    return Engine(decoder, encode, PLACEHOLDER, limits=Limits(**limits), cache_tokens=cache_tokens)


def made_prompts() -> list[Prompt]:
    """Texts of 1 to 40 tokens about none to two of four pictures; some share a beginning."""
    chance = random.Random(1)
    made = []
    for number in range(24):
        images = [Noise(chance.randrange(4)) for _ in range(number % 3)]
        text = [chance.randrange(80) for _ in range(chance.randint(1, 40))]
        start = list(range(40)) if number % 4 == 0 else []
        made.append(Prompt([*start, *[PLACEHOLDER] * IMAGE_TOKENS * len(images), *text], images))
    return made


PROMPTS = made_prompts()


@pytest.fixture(scope="module", params=STORED.values(), ids=STORED)
def case(request: pytest.FixtureRequest) -> Case:
    dtype, mode = request.param
    torch.manual_seed(0)
    config = text_config(hidden_size=WIDTH)
    decoder = make_decoder(config, random_phi(config).state_dict(), torch.device("cpu"), dtype, mode)
    assert isinstance(decoder, CpuDecoder)
    if dtype != torch.float32 and decoder.team.tiles:
        pytest.skip("with tiles (AMX) prompts of 16 bits are torch's, which rounds otherwise than steps do")

    def alone(settings: list[Sampling]) -> list[Generation]:
        return [engine_of(decoder).generate([p], s)[0] for p, s in zip(PROMPTS, settings, strict=True)]

    return Case(decoder, alone(GREEDY), alone(SEEDED))


@pytest.mark.parametrize("limits", LIMITS)
def test_an_answer_is_the_same_alone_in_any_batch_in_pieces_and_after_preemption(
    case: Case, limits: dict[str, Any]
) -> None:
    """To the last bit of its log-probabilities: 24 requests that come together, greedy and seeded, and again with every
    prefix in the cache.
    """
    engine = engine_of(case.decoder, **limits)
    for _ in range(2):
        assert engine.generate(PROMPTS, GREEDY) == case.greedy
        assert engine.generate(PROMPTS, SEEDED) == case.seeded
    assert {one.finish_reason for one in case.greedy} >= {"stop", "length"}
    assert len({one.tokens for one in case.seeded}) > 20
    assert (engine.scheduler.preemptions > 0) == ("cache_tokens" in limits)
    assert engine.scheduler.shared_tokens > 0
    assert engine.pages.used == 0


def test_a_stream_is_the_answer(case: Case) -> None:
    """Token by token, sync and async, all of them at once."""
    engine = engine_of(case.decoder)
    tickets = [engine.submit(*pair) for pair in zip(PROMPTS, GREEDY, strict=True)]
    assert [tuple(token.id for token in ticket) for ticket in tickets] == [one.tokens for one in case.greedy]

    async def read(ticket: Ticket) -> tuple[int, ...]:
        return tuple([token.id async for token in ticket])

    async def read_all() -> list[tuple[int, ...]]:
        return await asyncio.gather(*(read(engine.submit(*one)) for one in zip(PROMPTS, SEEDED, strict=True)))

    assert asyncio.run(read_all()) == [one.tokens for one in case.seeded]
