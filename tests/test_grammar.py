"""Answers in a form: a JSON schema, a regular expression or choices, whatever the model wants to write."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema
import pytest
import torch
from regex import fullmatch
from tokenizers import Tokenizer, models

from tests.test_sampling import ids, sampling
from vision_lm.engine.grammar import Constraint, Grammars
from vision_lm.engine.sampling import Row, choose
from vision_lm.errors import RequestError

EOS = 0


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
