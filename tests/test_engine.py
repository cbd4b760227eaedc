"""Batches, sampling and stopping of the generation core."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.conftest import random_phi, text_config
from vision_lm.engine import Engine, Sampling, TorchDecoder
from vision_lm.engine.sampling import choose
from vision_lm.engine.stopping import Cycles
from vision_lm.engine.torch_decoder import KVCache
from vision_lm.errors import RequestError


@pytest.fixture(scope="module")
def decoder() -> TorchDecoder:
    torch.manual_seed(0)
    config = text_config()
    return TorchDecoder(config, random_phi(config).state_dict(), torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module")
def prompts() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(3 + 5 * n % 37, 64, generator=generator) for n in range(20)]


def test_rows_that_finish_at_different_times_leave_the_others_alone(
    decoder: TorchDecoder, prompts: list[Tensor]
) -> None:
    """Rows leave the cache early, in the middle and late; every answer is what it is alone."""
    engine = Engine(decoder)
    settings = [Sampling(max_tokens=1 + 7 * n % 30, stop_ids=frozenset(range(12))) for n in range(20)]
    together = engine.generate(prompts, settings)
    alone = [engine.generate([prompt], one)[0] for prompt, one in zip(prompts, settings, strict=True)]
    assert [one.tokens for one in together] == [one.tokens for one in alone]
    assert len({len(one.tokens) for one in alone}) > 5
    assert {one.finish_reason for one in alone} >= {"stop", "length"}
    for one, other in zip(together, alone, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)


def test_a_long_list_stays_within_the_token_budget(
    decoder: TorchDecoder, prompts: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No cache is larger than the budget, the list comes back in order, and batches are used."""
    sampling = Sampling(max_tokens=10)
    expected = [Engine(decoder).generate([prompt], sampling)[0].tokens for prompt in prompts] * 3
    prefill, sizes = TorchDecoder.prefill, []

    def watched(self: TorchDecoder, prompts: Sequence[Tensor], new_tokens: int) -> tuple[Tensor, KVCache]:
        logits, cache = prefill(self, prompts, new_tokens)
        sizes.append((cache.keys.shape[1], cache.keys.shape[3]))
        return logits, cache

    monkeypatch.setattr(TorchDecoder, "prefill", watched)
    answers = Engine(decoder, token_budget=150).generate(prompts * 3, sampling)
    assert [one.tokens for one in answers] == expected
    assert max(rows * columns for rows, columns in sizes) <= 150
    assert len(sizes) < 30
    assert sum(rows for rows, _ in sizes) == 60


def test_streamed_tokens_are_the_generation(decoder: TorchDecoder, prompts: list[Tensor]) -> None:
    """Streaming yields exactly the generation's tokens, also where a loop's tail is dropped."""
    engine = Engine(decoder)
    reasons = set()
    for prompt in prompts:
        sampling = Sampling(max_tokens=120, stop_ids=frozenset(range(4)))
        stream, streamed = engine.stream(prompt, sampling), []
        while True:
            try:
                streamed.append(next(stream))
            except StopIteration as end:
                generation = end.value
                break
        assert generation == engine.generate([prompt], sampling)[0]
        assert tuple(token.id for token in streamed) == generation.tokens
        reasons.add(generation.finish_reason)
    assert reasons >= {"stop", "repetition"}


def test_the_first_token_is_streamed_before_the_second_is_computed(
    decoder: TorchDecoder, prompts: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream does not wait for the whole answer."""
    monkeypatch.setattr(TorchDecoder, "step", lambda *_: pytest.fail("decoded ahead of the reader"))
    assert next(Engine(decoder).stream(prompts[0], Sampling(max_tokens=5))).logprob < 0


def test_a_prompt_beyond_the_positions_is_refused_before_anything_runs(
    decoder: TorchDecoder, prompts: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error gives the numbers, and the good prompts of the list are not started either."""
    monkeypatch.setattr(TorchDecoder, "prefill", lambda *_: pytest.fail("something ran"))
    with pytest.raises(RequestError, match=r"the prompt has 200 tokens.*max_tokens 57 of.*256.*199"):
        Engine(decoder).generate([prompts[0], torch.zeros(200, 64)], Sampling(max_tokens=57))


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_tokens": 0},
        {"max_tokens": 2.5},
        {"temperature": -1},
        {"temperature": float("nan")},
        {"temperature": "hot"},
        {"top_p": 0},
        {"top_p": 1.5},
        {"top_k": 0},
        {"seed": -1},
    ],
)
def test_settings_without_sense_are_refused(wrong: dict[str, Any]) -> None:
    """One line that names the setting and what it was."""
    (name, value), *_ = wrong.items()
    with pytest.raises(RequestError, match=rf"^{name} is '?{value}") as caught:
        Sampling(**({"max_tokens": 5} | wrong))
    assert "\n" not in str(caught.value)


def test_a_seed_gives_the_same_sample_in_any_batch(decoder: TorchDecoder, prompts: list[Tensor]) -> None:
    """A seeded request answers alike alone, again, and among others; another seed answers otherwise."""
    engine = Engine(decoder)
    settings = [Sampling(max_tokens=20, temperature=1.0, top_p=0.95, seed=n) for n in range(20)]
    together = [one.tokens for one in engine.generate(prompts, settings)]
    alone = [engine.generate([p], s)[0].tokens for p, s in zip(prompts, settings, strict=True)]
    assert together == alone
    assert len({engine.generate([prompts[0]], one)[0].tokens for one in settings}) > 15


def test_draws_follow_the_tempered_truncated_distribution() -> None:
    """Over evenly spread draws each token comes as often as numpy's own computation says."""
    logits = torch.randn(1, 30, generator=torch.Generator().manual_seed(2)) * 2
    sampling = Sampling(max_tokens=1, temperature=0.7, top_k=12, top_p=0.9)
    probs = np.exp(logits[0].double().numpy() / 0.7)
    probs[np.argsort(probs)[:-12]] = 0
    probs /= probs.sum()
    order = np.argsort(-probs)
    probs[order[np.searchsorted(np.cumsum(probs[order]), 0.9) + 1 :]] = 0
    probs /= probs.sum()
    draws = (np.arange(4000) + 0.5) / 4000
    ids, logprobs = choose(logits.expand(4000, -1), [sampling] * 4000, draws.tolist())
    counts = np.bincount(ids, minlength=30) / 4000
    assert 1 < np.count_nonzero(probs) < 12
    np.testing.assert_allclose(counts, probs, atol=2 / 4000)
    untempered = logits[0].log_softmax(-1)
    assert logprobs == pytest.approx(untempered[ids].tolist(), abs=1e-6)


@pytest.mark.parametrize(("draw", "first_or_last"), [(0.0, 0), (1 - 2**-53, -1)])
@pytest.mark.parametrize(
    ("options", "kept"), [({}, [0, 1, 2, 3]), ({"top_k": 2}, [1, 3]), ({"top_p": 0.8}, [1, 3])]
)
def test_extreme_draws_stay_inside_the_kept_tokens(
    draw: float, first_or_last: int, options: dict[str, Any], kept: list[int]
) -> None:
    """The smallest and the largest possible draw give the first and the last of the tokens that are kept."""
    logits = torch.tensor([[0.0, 3.0, 1.0, 2.0]])
    ids, _ = choose(logits, [Sampling(max_tokens=1, temperature=1.0, **options)], [draw])
    assert ids == [kept[first_or_last]]


def run(tokens: Sequence[int]) -> tuple[int, int] | None:
    """Where a loop is found, and what is left; None without a loop."""
    cycles = Cycles()
    for count, token in enumerate(tokens, start=1):
        cycles.push(token)
        if cycles.looping:
            return count, count - cycles.repeated
    return None


@pytest.mark.parametrize("period", [1, 2, 5, 8, 30, 64])
def test_a_loop_is_cut_to_its_first_round(period: int) -> None:
    """Any period up to the longest is found within three rounds or 16 repeated tokens, and one round is kept."""
    start = [1000, 1001, 1002]
    found = run(start + list(range(period)) * 40)
    assert found == (3 + period + max(2 * period, 16), 3 + period)


@pytest.mark.parametrize(
    "tokens",
    [
        [7, 8, 7, 8, 7],  # "2, 2, 2"
        [5] * 16,  # sixteen zeros
        [1, 2, 3, 4] * 4,  # four equal items of a list
        list(range(30)) * 2,  # one sentence twice: captions have a stricter rule
        list(itertools.chain.from_iterable([1, 2, 3, n] for n in range(10, 40))),  # "a cat, a dog, a ..."
    ],
)
def test_answers_that_repeat_a_little_are_no_loops(tokens: list[int]) -> None:
    """Short repetitions are legitimate answers."""
    assert run(tokens) is None
