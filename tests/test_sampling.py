"""What a request may set, and how tokens are chosen."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from vision_lm.engine.sampling import Row, Sampling, Token, choose
from vision_lm.errors import RequestError, VisionLMError

DRAWS = 4000


def sampling(**settings: Any) -> Sampling:
    return Sampling(**({"max_tokens": 1} | settings))


def random_logits(rows: int, tokens: int, seed: int) -> Tensor:
    return torch.randn(rows, tokens, generator=torch.Generator().manual_seed(seed)) * 2


def ids(results: Sequence[Token | VisionLMError]) -> list[int]:
    assert all(isinstance(one, Token) for one in results), results
    return [one.id for one in results if isinstance(one, Token)]


# Settings


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_tokens": 0},
        {"max_tokens": 2.5},
        {"max_tokens": True},
        {"temperature": -1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"temperature": 10**400},
        {"temperature": "hot"},
        {"top_p": 0},
        {"top_p": 1.5},
        {"top_k": 0},
        {"min_p": -0.1},
        {"min_p": 1.1},
        {"repetition_penalty": 0},
        {"repetition_penalty": float("nan")},
        {"seed": -1},
        {"top_logprobs": 21},
        {"top_logprobs": None},
        {"stop_ids": frozenset([-1])},
    ],
)
def test_settings_without_sense_are_refused(wrong: dict[str, Any]) -> None:
    """One line that names the setting and what it was."""
    (name, value), *_ = wrong.items()
    with pytest.raises(RequestError, match=rf"^{name} is '?{re.escape(str(value)[:40])}") as caught:
        sampling(**wrong)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("stop", ["", [""], ["x" * 201], ["x"] * 17, [5], None, {"a": 1}])
def test_stop_strings_of_a_wrong_kind_are_refused(stop: Any) -> None:
    """Empty texts, which stand everywhere, and too many or too long ones, which would slow every token."""
    with pytest.raises(RequestError, match="^stop is .*; give up to 16 texts, each of 1 to 200 characters$"):
        sampling(stop=stop)


def test_stop_strings_and_choices_may_be_given_as_a_caller_has_them() -> None:
    """A text alone or a list is as good as a tuple, and settings can still be compared and hashed."""
    assert sampling(stop="\n").stop == sampling(stop=["\n"]).stop == ("\n",)
    one = sampling(choices=["a", "b"], json_schema=None)
    assert one == sampling(choices=("a", "b")) and hash(one) == hash(sampling(choices=("a", "b")))
    assert one != sampling(choices=["a", "c"])
    schema = {"type": "integer"}
    assert sampling(json_schema=schema) == sampling(json_schema=json.dumps(schema))


@pytest.mark.parametrize(
    "wrong",
    [
        {"json_schema": False},
        {"json_schema": [1]},
        {"json_schema": "not JSON"},
        {"json_schema": "[" * 100_000},
        {"json_schema": {"minimum": float("nan")}},
        {"json_schema": {"type": {1, 2}}},
        {"json_schema": {"const": "x" * 20_001}},
        {"regex": ""},
        {"regex": 5},
        {"regex": "a" * 4_001},
        {"regex": "a\\"},
        {"regex": "\ud800"},
        {"choices": []},
        {"choices": "abc"},
        {"choices": ["a", ""]},
        {"choices": ["a", 5]},
        {"choices": ["\ud800"]},
        {"regex": "a", "choices": ["a"]},
    ],
)
def test_forms_without_sense_are_refused(wrong: dict[str, Any]) -> None:
    """One short line, however long, deep or odd what was given; two forms at once are refused too."""
    with pytest.raises(RequestError, match=f"^{' and '.join(wrong)} (is|are) .*; give ") as caught:
        sampling(**wrong)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 250


def test_an_endless_schema_is_refused() -> None:
    """A dict that holds itself, and one too deep for the JSON writer."""
    loop: dict[str, Any] = {}
    loop["items"] = loop
    deep: dict[str, Any] = {}
    for _ in range(5_000):
        deep = {"items": deep}
    for schema in (loop, deep):
        with pytest.raises(RequestError, match="^json_schema is "):
            sampling(json_schema=schema)


# Choosing


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0.7, "top_k": 12, "top_p": 0.9},
        {"temperature": 1.7, "top_p": 0.8},
        {"temperature": 0.5, "min_p": 0.05},
        {"top_k": 5, "min_p": 0.2},
        {"top_k": 100, "top_p": 0.95, "min_p": 0.02, "repetition_penalty": 1.3},
        {"repetition_penalty": 0.8},
        {"temperature": 3.0, "top_k": 1},
    ],
)
def test_draws_follow_the_distribution_of_transformers_warpers(settings: dict[str, Any]) -> None:
    """Over evenly spread draws each token comes as often as transformers' processors give it probability."""
    logits, seen_ids = random_logits(1, 30, seed=2), [3, 7, 7, 11, 29, 0]
    wanted = sampling(**({"temperature": 1.0} | settings))
    processors = [
        RepetitionPenaltyLogitsProcessor(float(wanted.repetition_penalty)),
        TemperatureLogitsWarper(wanted.temperature),
        TopKLogitsWarper(wanted.top_k or 30),
        TopPLogitsWarper(wanted.top_p),
        MinPLogitsWarper(wanted.min_p),
    ]
    probs = LogitsProcessorList(processors)(torch.tensor([seen_ids]), logits.double()).softmax(-1)[0].numpy()
    seen = torch.zeros(30, dtype=torch.bool)
    seen[seen_ids] = True
    rows = [Row(wanted, (n + 0.5) / DRAWS, seen) for n in range(DRAWS)]
    results = choose(logits.expand(DRAWS, -1), rows)
    counts = np.bincount(ids(results), minlength=30) / DRAWS
    assert not counts[probs == 0].any()
    np.testing.assert_allclose(counts, probs, atol=2 / DRAWS)
    untempered = logits[0].log_softmax(-1)
    logprobs = [one.logprob for one in results if isinstance(one, Token)]
    assert logprobs == pytest.approx(untempered[ids(results)].tolist(), abs=1e-6)


@pytest.mark.parametrize("penalty", [0.5, 1.0, 4.0])
def test_greedy_rows_obey_the_penalty_as_transformers_does(penalty: float) -> None:
    """The likeliest token after the penalty, for many prompts at once; both signs of logits are met."""
    logits = random_logits(200, 50, seed=3)
    prompts = torch.randint(50, (200, 20), generator=torch.Generator().manual_seed(4))
    expected = RepetitionPenaltyLogitsProcessor(penalty)(prompts, logits.clone()).argmax(-1)
    seen = torch.zeros(200, 50, dtype=torch.bool).scatter(1, prompts, True)
    rows = [Row(sampling(repetition_penalty=penalty), seen=one) for one in seen]
    assert ids(choose(logits, rows)) == expected.tolist()
    if penalty != 1:
        assert expected.tolist() != logits.argmax(-1).tolist()


@pytest.mark.parametrize(("draw", "first_or_last"), [(0.0, 0), (1 - 2**-53, -1)])
@pytest.mark.parametrize(
    ("settings", "kept"),
    [({}, [0, 1, 2, 3]), ({"top_k": 2}, [1, 3]), ({"top_p": 0.8}, [1, 3]), ({"min_p": 0.3}, [1, 3])],
)
def test_extreme_draws_stay_inside_the_kept_tokens(
    draw: float, first_or_last: int, settings: dict[str, Any], kept: list[int]
) -> None:
    """The smallest and the largest possible draw give the first and the last of the tokens that are kept."""
    logits = torch.tensor([[0.0, 3.0, 1.0, 2.0]])
    row = Row(sampling(temperature=1.0, **settings), draw)
    assert ids(choose(logits, [row])) == [kept[first_or_last]]


@pytest.mark.parametrize("temperature", [5e-324, 1e-30, 1e30, 1e308])
def test_extreme_temperatures_still_choose_among_the_likeliest(temperature: float) -> None:
    """No overflow: cold is greedy, and hot is even among the two likeliest."""
    rows = [Row(sampling(temperature=temperature, top_k=2), draw) for draw in (0.1, 0.9)]
    expected = [1, 1] if temperature < 1 else [1, 3]
    assert ids(choose(torch.tensor([[0.0, 3.0, 1.0, 2.0]] * 2), rows)) == expected


def test_of_equal_tokens_no_more_than_top_k_are_kept() -> None:
    """Narrow dtypes make equal logits, and "at most two" must stay two."""
    logits = torch.tensor([[1.0, 2.0, 1.0, 2.0, 2.0, 1.0]] * 100)
    rows = [Row(sampling(temperature=1.0, top_k=2), n / 100) for n in range(100)]
    assert set(ids(choose(logits, rows))) == {1, 3}
    rows = [Row(sampling(temperature=1.0, top_k=4), n / 100) for n in range(100)]
    assert set(ids(choose(logits, rows))) == {0, 1, 3, 4}


def test_a_row_is_chosen_as_if_it_were_alone() -> None:
    """Every mixture of settings in one batch gives each row, bit for bit, what it gets alone."""
    generator = random.Random(5)
    rows, logits = [], random_logits(300, 257, seed=6)
    logits[::3] = logits[::3].bfloat16().float()  # with equal ones
    for _ in range(300):
        settings = {
            "temperature": generator.choice([0.0, 0.3, 1.0, 2.5]),
            "top_k": generator.choice([None, None, 1, 7, 60, 10_000]),
            "top_p": generator.choice([1.0, 0.4, 0.9]),
            "min_p": generator.choice([0.0, 0.0, 0.1]),
            "repetition_penalty": generator.choice([1.0, 1.2]),
            "top_logprobs": generator.choice([0, 1, 20]),
        }
        masks = [torch.rand(257, generator=torch.Generator().manual_seed(len(rows))) < 0.5, None]
        rows.append(
            Row(sampling(**settings), generator.random(), generator.choice(masks), generator.choice(masks))
        )
    together = choose(logits, rows)
    assert together == [choose(logits[n : n + 1], [row])[0] for n, row in enumerate(rows)]
    assert len(set(ids(together))) > 50


def test_only_allowed_tokens_are_chosen_and_the_probability_stays_the_model_s_own() -> None:
    """A mask changes what is chosen, greedy or drawn, but not the log-probability that is reported."""
    logits = random_logits(100, 40, seed=7)
    allowed = torch.zeros(40, dtype=torch.bool)
    allowed[[4, 9, 33]] = True
    for settings in ({}, {"temperature": 1.0}, {"temperature": 1.0, "top_k": 20, "top_p": 0.99}):
        rows = [Row(sampling(**settings), n / 100, allowed=allowed) for n in range(100)]
        results = choose(logits, rows)
        assert set(ids(results)) == {4, 9, 33}
        for one, row in zip(results, logits.double().log_softmax(-1), strict=True):
            assert isinstance(one, Token) and one.logprob == pytest.approx(float(row[one.id]), abs=1e-5)


def test_alternatives_are_the_likeliest_tokens_under_the_model() -> None:
    """As many as asked for, in order, by numpy's sorting; whatever temperature, penalty and mask say."""
    logits = random_logits(21, 25, seed=8)
    allowed = torch.arange(25) < 2
    rows = [Row(sampling(top_logprobs=n, temperature=2.0), 0.5, allowed, allowed) for n in range(21)]
    for count, (one, row) in enumerate(
        zip(choose(logits, rows), logits.log_softmax(-1).numpy(), strict=True)
    ):
        order = np.argsort(-row)[:count]
        assert isinstance(one, Token)
        assert [token for token, _ in one.top] == order.tolist()
        assert [logprob for _, logprob in one.top] == pytest.approx(row[order].tolist())
    few = choose(logits[:1, :3], [Row(sampling(top_logprobs=20))])[0]
    assert isinstance(few, Token) and len(few.top) == 3


@pytest.mark.parametrize(
    "settings", [{}, {"temperature": 1.0}, {"temperature": 1.0, "top_p": 0.5, "top_k": 3}]
)
def test_what_is_wrong_with_a_row_stands_in_its_place(settings: dict[str, Any]) -> None:
    """Not-a-number, infinity and a form without a way on are errors of their rows; the others are unharmed."""
    logits = random_logits(5, 20, seed=9)
    nothing = torch.zeros(20, dtype=torch.bool)
    rows = [Row(sampling(**settings), 0.5, allowed=nothing if n == 3 else None) for n in range(5)]
    expected = ids(choose(logits[[0, 2]], [rows[0], rows[2]]))
    logits[1, 4], logits[4, 19] = float("nan"), float("inf")
    results = choose(logits, rows)
    assert ids([results[0], results[2]]) == expected
    assert isinstance(results[1], VisionLMError) and "not a number" in str(results[1])
    assert isinstance(results[4], VisionLMError) and "not a number" in str(results[4])
    assert isinstance(results[3], RequestError) and "no token can go on" in str(results[3])
