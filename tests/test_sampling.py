"""What a request may set, how tokens are chosen, forms of answers, and what stops an answer."""

from __future__ import annotations

import itertools
import json
import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from regex import fullmatch
from tokenizers import Tokenizer, decoders, models
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

import vision_lm
from vision_lm.engine.grammar import Constraint, Grammars
from vision_lm.engine.sampling import Row, Sampling, Token, choose
from vision_lm.engine.stopping import Cycles, StopStrings
from vision_lm.errors import RequestError, VisionLMError

DRAWS = 4000
EOS = 0


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


# Forms of answers


@pytest.fixture(scope="module")
def mini_tokenizer() -> Tokenizer:
    weights = Path(vision_lm.__file__).parent / "weights" / "mini"
    return Tokenizer.from_file(str(weights / "tokenizer.json"))


@pytest.fixture(scope="module")
def grammars(mini_tokenizer: Tokenizer) -> Grammars:
    """With a hundred embedding rows that are no tokens, as phi-1.5 has hundreds."""
    return Grammars(mini_tokenizer, mini_tokenizer.get_vocab_size() + 100, [EOS])


def write(
    grammars: Grammars, tokenizer: Tokenizer, form: dict[str, Any], seed: int, *, most: int = 300
) -> str | None:
    """What random logits write in this form, or None if they have not ended it after `most` tokens.

    The longer it gets the more is what ends things likely, so that most texts end.
    """
    wanted = sampling(temperature=1.0, **form)
    assert wanted.constraint is not None
    matcher, generator = grammars.matcher(wanted.constraint), torch.Generator().manual_seed(seed)
    ending = [EOS, *(tokenizer.token_to_id(one) for one in '"}],:')]
    written: list[int] = []
    for length in range(most):
        allowed = matcher.mask()
        logits = torch.randn(1, len(allowed), generator=generator) * 2
        logits[:, -100:] += 1000  # the model wants nothing but what is no token
        logits[0, ending] += length / 5
        draw = float(torch.rand(1, generator=generator))
        (token,) = ids(choose(logits, [Row(wanted, draw, allowed=allowed)]))
        matcher.accept(token)
        if token == EOS:
            return tokenizer.decode(written)
        written.append(token)
    return None


SCHEMAS: list[dict[str, Any]] = [
    {"type": "object"},
    {
        "type": "array",
        "items": {"type": "integer", "minimum": -5, "maximum": 50},
        "minItems": 2,
        "maxItems": 4,
    },
    {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 12},
            "count": {"type": "integer"},
            "colour": {"enum": ["red", "blue", None]},
            "boxes": {"type": "array", "maxItems": 2, "items": {"$ref": "#/$defs/box"}},
        },
        "required": ["name", "count", "colour"],
        "additionalProperties": False,
        "$defs": {
            "box": {"type": "array", "prefixItems": [{"type": "number"}] * 2, "items": False, "minItems": 2}
        },
    },
    {"anyOf": [{"type": "boolean"}, {"type": "string", "pattern": "^[a-f]{2,5}$"}]},
]


@pytest.mark.parametrize("schema", SCHEMAS)
def test_json_follows_its_schema_whatever_the_model_wants(
    grammars: Grammars, mini_tokenizer: Tokenizer, schema: dict[str, Any]
) -> None:
    """Random logits write nothing but JSON that an independent validator accepts, and end it only when it is whole."""
    texts = [write(grammars, mini_tokenizer, {"json_schema": schema}, seed) for seed in range(12)]
    finished = [text for text in texts if text is not None]
    assert len(finished) > 6 and len(set(finished)) > 2
    for text in finished:
        jsonschema.validate(json.loads(text), schema)
        assert "  " not in re.sub(r'"(\\.|[^"\\])*"', "string", text)  # a model cannot get lost in blanks


def test_true_asks_for_any_json_object(grammars: Grammars, mini_tokenizer: Tokenizer) -> None:
    """`json_schema=True` is the mode without a schema."""
    texts = [write(grammars, mini_tokenizer, {"json_schema": True}, seed) for seed in range(5)]
    assert all(isinstance(json.loads(text), dict) for text in texts if text is not None)
    assert any(texts)


@pytest.mark.parametrize(
    "regex",
    [
        r"\d{1,3}(\.\d)?",
        "(red|blue)( and (green|pink))*",
        "^[A-Z][a-z]{0,7}$",
        r"a/b+\\|\"[^\"\n]{3}\"",
        "é|漢字?",
    ],
)
def test_text_matches_its_regular_expression_as_a_whole(
    grammars: Grammars, mini_tokenizer: Tokenizer, regex: str
) -> None:
    """Random logits write only what the package regex accepts, whose Unicode is as new as the grammar's.

    Slashes, quotes and multi-byte characters too.
    """
    texts = [write(grammars, mini_tokenizer, {"regex": regex}, seed) for seed in range(12)]
    assert None not in texts and len(set(texts)) > 1
    for text in texts:
        assert text is not None and fullmatch(regex, text)


def test_a_choice_is_written_as_it_stands(grammars: Grammars, mini_tokenizer: Tokenizer) -> None:
    """Every choice can be reached, also one that begins another, and the grammar's own signs are plain text in it."""
    choices = ["a", "ab", "a cube", 'say "no"', "a|b", "/x/", "\\d", "two\nlines", "漢", "%json {}"]
    texts = [write(grammars, mini_tokenizer, {"choices": choices}, seed) for seed in range(600)]
    assert set(texts) == set(choices)


def test_an_answer_ends_only_where_its_form_does(grammars: Grammars, mini_tokenizer: Tokenizer) -> None:
    """The stop token is allowed exactly at a whole answer; `done` says that only the stop token is left."""
    matcher = grammars.matcher(Constraint("regex", "12?"))
    one, two = (mini_tokenizer.token_to_id(digit) for digit in "12")
    assert not matcher.mask()[EOS] and not matcher.done
    with pytest.raises(RequestError, match="does not fit"):
        grammars.matcher(Constraint("regex", "12?")).accept(two)
    matcher.accept(one)
    assert matcher.mask()[EOS] and matcher.mask()[two] and not matcher.done
    matcher.accept(two)
    assert matcher.mask().nonzero().tolist() == [[EOS]] and matcher.done


def test_a_lead_comes_before_the_form(mini_tokenizer: Tokenizer) -> None:
    """Where the prompt's template begins every answer with a blank, the form follows it."""
    grammars = Grammars(mini_tokenizer, mini_tokenizer.get_vocab_size() + 100, [EOS], lead=" ")
    forms = [{"choices": ["red", "blue"]}, {"regex": "^red|blue$"}, {"json_schema": {"type": "integer"}}]
    for form in forms:
        text = write(grammars, mini_tokenizer, form, seed=1)
        assert text is not None and text[0] == " " and text[1:] in {"red", "blue"} | {text.strip()}


def test_requests_in_one_form_do_not_disturb_each_other(
    grammars: Grammars, mini_tokenizer: Tokenizer
) -> None:
    """A form is compiled once, and every request walks it from the beginning."""
    constraint = Constraint("choices", ("red", "blue"))
    first = grammars.matcher(constraint)
    start = first.mask()
    first.accept(mini_tokenizer.token_to_id("r"))
    assert torch.equal(grammars.matcher(constraint).mask(), start)
    assert not torch.equal(first.mask(), start)


@pytest.mark.parametrize(
    ("form", "reason"),
    [
        ({"json_schema": {"type": "objekt"}}, "objekt"),
        ({"json_schema": {"not": {}}}, "not"),
        ({"json_schema": {"not": {}, "x-guidance": {"lenient": True}}}, "not"),
        ({"json_schema": {"enum": []}}, "empty"),
        ({"json_schema": {"$ref": "http://localhost/schema.json"}}, "not present"),
        ({"json_schema": {"$ref": "#"}}, "no text"),
        ({"json_schema": {"pattern": "(", "type": "string"}}, "unclosed group"),
        ({"json_schema": '{"items":' * 900 + "{}" + "}" * 900}, "recursion"),
        ({"regex": "["}, "unclosed character class"),
        ({"regex": "(?=a)b"}, "look-around"),
        ({"regex": r"(a)\1"}, "backreferences"),
        ({"regex": r"[^\s\S]"}, "no text"),
        ({"regex": "(" * 1000 + ")" * 1000}, "nested"),
    ],
)
def test_a_form_that_cannot_be_followed_is_refused(
    grammars: Grammars, form: dict[str, Any], reason: str
) -> None:
    """Before anything is queued, in one line that says why; no address in a schema is ever fetched."""
    constraint = sampling(**form).constraint
    assert constraint is not None
    with pytest.raises(RequestError, match=f"^{constraint.kind} is .*{reason}") as caught:
        grammars.matcher(constraint)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_a_form_that_gets_too_complex_ends_its_own_request(
    grammars: Grammars, mini_tokenizer: Tokenizer
) -> None:
    """The library gives up in the middle; the matcher says so and hangs neither then nor later."""
    matcher = grammars.matcher(Constraint("regex", "(a{1,1000}){1,1000}"))
    a = mini_tokenizer.token_to_id("a")

    def walk() -> None:
        for _ in range(400):
            assert matcher.mask()[a]
            matcher.accept(a)

    with pytest.raises(RequestError, match="the answer's form is refused .*; simplify it$"):
        walk()
    with pytest.raises(RequestError):
        matcher.mask()
    assert not matcher.done


def test_a_tokenizer_that_the_library_cannot_read_is_a_request_s_error() -> None:
    """Such a checkpoint still loads and answers; only constrained requests are refused."""
    words = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    with pytest.raises(RequestError, match="this checkpoint's tokenizer"):
        Grammars(words, 2, [0]).matcher(Constraint("regex", "a"))


# Stop strings


def watched(
    stop: Sequence[str], tokens: Sequence[int], decode: Callable[[Sequence[int]], str]
) -> tuple[StopStrings, int, list[int]]:
    """The watcher at its end, how many tokens it was told, and how many were certain after each."""
    watcher, certain = StopStrings(stop, decode), []
    for count, token in enumerate(tokens, start=1):
        watcher.push(token)
        assert watcher.text[: watcher.certain] == decode(tokens)[: watcher.certain]
        certain.append(watcher.certain_tokens)
        if watcher.cut is not None:
            return watcher, count, certain
    return watcher, len(tokens), certain


def byte_fallback_tokenizer() -> Tokenizer:
    """A tokenizer of the other kind: blanks as "▁", single bytes as "<0xE6>"; the first blank is not text."""
    pieces = ["<unk>", *(f"<0x{n:02X}>" for n in range(256)), "▁", "a", "b", "ab", "▁a", "b▁", "aba"]
    tokenizer = Tokenizer(models.BPE({piece: n for n, piece in enumerate(pieces)}, [], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def random_tokens(tokenizer: Tokenizer, generator: random.Random) -> list[int]:
    """Text over few characters, so that stop strings are met, split anywhere; sometimes bytes that are no text."""
    tokens: list[int] = []
    if tokenizer.token_to_id("<0x00>") is not None:  # "é" always comes in two pieces
        pieces = [[one] for one in range(257, 264)] + [[1 + 0xC3, 1 + 0xA9]]
        return [one for _ in range(generator.randint(1, 30)) for one in generator.choice(pieces)]
    for _ in range(generator.randint(1, 12)):
        text = "".join(generator.choice("aab\n é漢😀") for _ in range(generator.randint(1, 6)))
        tokens += tokenizer.encode(text).ids
    if generator.random() < 0.2:
        tokens.insert(generator.randrange(len(tokens)), tokenizer.encode("é").ids[0])
    return tokens


@pytest.mark.parametrize("kind", ["byte-level", "byte fallback"])
def test_the_text_ends_before_the_first_stop_string(kind: str, mini_tokenizer: Tokenizer) -> None:
    """Against `str.find` on the whole text, over random tokenisations and stop strings.

    The cut is right, it is found with the first token that completes the string, nothing certain is taken back,
    the tokens that remain hold the text and no more than the last one's rest, and the held-back end is least.
    """
    tokenizer = mini_tokenizer if kind == "byte-level" else byte_fallback_tokenizer()

    def decode(tokens: Sequence[int]) -> str:
        return tokenizer.decode(list(tokens), skip_special_tokens=True)

    generator, found, in_the_middle = random.Random(10), 0, 0
    for _ in range(1_500):
        tokens = random_tokens(tokenizer, generator)
        text = decode(tokens)
        stop = ["".join(generator.choices("ab\n é漢", k=generator.randint(1, 4))) for _ in range(3)]
        watcher, told, certain = watched(stop, tokens, decode)
        whole = text.rstrip("\ufffd")
        places = [(whole.find(one) + len(one), whole.find(one)) for one in stop if one in whole]
        if not places:
            assert watcher.cut is None and watcher.text == whole and watcher.tokens == len(tokens)
            held = next(
                n for n in range(9, -1, -1) if any(whole.endswith(s[:n]) and n < len(s) for s in stop)
            )
            assert watcher.certain == len(whole) - held
            continue
        found += 1
        end, cut = min(places)
        assert watcher.cut == watcher.certain == cut and watcher.text == text[:cut]
        assert len(decode(tokens[:told]).rstrip("\ufffd")) >= end
        assert len(decode(tokens[: told - 1]).rstrip("\ufffd")) < end
        assert certain == sorted(certain) and certain[-1] <= watcher.tokens
        assert decode(tokens[: watcher.tokens])[:cut] == text[:cut]
        assert watcher.tokens == 0 or len(decode(tokens[: watcher.tokens - 1]).rstrip("\ufffd")) <= cut
        in_the_middle += decode(tokens[: watcher.tokens]) != text[:cut]
    assert 300 < found < 1_450 and in_the_middle > 50


def test_the_cut_is_the_same_however_the_text_is_split(mini_tokenizer: Tokenizer) -> None:
    """One token at once, or a token a character: the stop string that is complete first counts."""
    text, stop = "the red cube, and", ["cube, and", "red cu", "ed c", "and"]

    def decode(tokens: Sequence[int]) -> str:
        return mini_tokenizer.decode(list(tokens))

    split = [mini_tokenizer.encode(text).ids, [one for c in text for one in mini_tokenizer.encode(c).ids]]
    assert split[0] != split[1]
    assert [watched(stop, tokens, decode)[0].text for tokens in split] == ["the r"] * 2


def test_long_answers_are_not_decoded_anew_at_every_token(mini_tokenizer: Tokenizer) -> None:
    """The work for a token does not grow with the answer."""
    longest = 0

    def decode(tokens: Sequence[int]) -> str:
        nonlocal longest
        longest = max(longest, len(tokens))
        return mini_tokenizer.decode(list(tokens))

    watcher = StopStrings(["never"], decode)
    for token in mini_tokenizer.encode("A red cube, é and 漢. " * 50).ids:
        watcher.push(token)
    assert watcher.text == "A red cube, é and 漢. " * 50
    assert longest < 16


# Loops


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
