"""VisionLM's promises: one request or many, with and without pictures, whole or in pieces, in any form."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import pytest
import torch

from tests.conftest import Pictures, message, scripted
from vision_lm.answer import Answer
from vision_lm.checkpoint import Checkpoint
from vision_lm.errors import RequestError
from vision_lm.model import VisionLM


def mixed_requests(pictures: Pictures) -> list[list[dict[str, Any]]]:
    """64 conversations of one or two questions, of 2 to 60 words, about none to three pictures."""
    chance = random.Random(0)
    words = ["cube", "cats", "image", "colour", "how", "many", "is", "the", "red", "two"]
    conversations = []
    for number in range(64):
        question = " ".join(chance.choices(words, k=chance.choice([2, 5, 12, 30, 60])))
        messages = [message(question, chance.sample(pictures, number % 4))]
        if number % 5 == 0:
            messages += [{"role": "assistant", "content": "two cats"}, message("how many?", [])]
        conversations.append(messages)
    return conversations


@pytest.fixture(scope="module")
def one_by_one(vlm: VisionLM, pictures: Pictures) -> list[Answer]:
    """The answer to each mixed request alone."""
    return [vlm.chat(messages, max_tokens=12) for messages in mixed_requests(pictures)]


@pytest.mark.parametrize("size", [2, 7, 64])
def test_batching_changes_no_answer(
    vlm: VisionLM, pictures: Pictures, one_by_one: list[Answer], size: int
) -> None:
    """Each of 64 mixed requests has the same greedy tokens alone and in any batch, in any order."""
    requests = mixed_requests(pictures)
    order = list(range(64))
    random.Random(size).shuffle(order)
    for start in range(0, 64, size):
        numbers = order[start : start + size]
        for number, answer in zip(
            numbers, vlm.chat([requests[n] for n in numbers], max_tokens=12), strict=True
        ):
            alone = one_by_one[number]
            assert isinstance(answer, Answer)
            assert (answer.tokens, answer.text) == (alone.tokens, alone.text)
            assert answer.finish_reason == alone.finish_reason
            assert answer.token_logprobs == pytest.approx(alone.token_logprobs, abs=1e-4)


def test_the_requests_that_are_batched_differ(one_by_one: list[Answer]) -> None:
    """The test above would mean little if the random model always said the same."""
    assert len({answer.tokens for answer in one_by_one}) > 48


def test_a_picture_changes_the_answer(tiny_checkpoint: Checkpoint, pictures: Pictures) -> None:
    """Both kinds of tower reach the language model."""
    vlm = VisionLM(tiny_checkpoint, device="cpu")
    answers = vlm.ask(pictures, "What colour is the cube?", max_tokens=16)
    assert len({str(answer) for answer in answers}) > 4


def test_lists_pair_and_spread(vlm: VisionLM, pictures: Pictures) -> None:
    """Lists are paired; one picture or one question serves all; None is no picture; unequal lists are refused."""
    first, second = pictures[:2]
    pairs = [vlm.ask(first, "how many?"), vlm.ask(second, "what colour?")]
    assert [str(a) for a in vlm.ask([first, second], ["how many?", "what colour?"])] == [
        str(a) for a in pairs
    ]
    assert str(vlm.ask([first, second], "how many?")[0]) == str(pairs[0])
    assert str(vlm.ask(first, ["what?", "how many?"])[1]) == str(pairs[0])
    assert str(vlm.ask([None, first], "how many?")[0]) == str(vlm.ask(None, "how many?"))
    assert vlm.caption([]) == []
    with pytest.raises(RequestError, match="2 images, 3 questions"):
        vlm.ask([first, second], ["a?", "b?", "c?"])


def test_streams_are_the_answers(tiny_checkpoint: Checkpoint, pictures: Pictures) -> None:
    """Pieces joined are the text, also where characters are split over tokens, and the answer comes with them."""
    vlm = VisionLM(tiny_checkpoint, device="cpu")
    several = 0
    for picture in pictures:
        messages = [message("how many cats?", [picture, pictures[0]])]
        pairs = [
            (vlm.stream(picture, "what colour?"), vlm.ask(picture, "what colour?")),
            (
                vlm.stream(picture, "what?", temperature=2.0, seed=1),
                vlm.ask(picture, "what?", temperature=2.0, seed=1),
            ),
            (vlm.stream_chat(messages), vlm.chat(messages)),
            (vlm.stream_caption(picture, "long"), vlm.caption(picture, "long")),
        ]
        for stream, answer in pairs:
            pieces = list(stream)
            assert "".join(pieces) == answer.text
            assert stream.answer is not None
            assert (stream.answer.text, stream.answer.tokens) == (answer.text, answer.tokens)
            assert stream.answer.token_logprobs == pytest.approx(answer.token_logprobs, abs=1e-4)
            assert all(pieces)
            several += len(pieces) > 2
    assert several > len(pictures)


def test_characters_are_streamed_whole(vit_checkpoint: Checkpoint) -> None:
    """A character of four bytes in four tokens arrives as one piece."""
    vlm = VisionLM(scripted(vit_checkpoint, " 🦊 is"), device="cpu")
    assert len(vlm.prompts.encode("🦊")) > 1
    assert [piece for piece in vlm.stream(None, "what?") if piece.strip()][0] == "🦊"
    assert str(vlm.ask(None, "what?")) == "🦊 is"
    assert str(vlm.ask(None, "what?", max_tokens=3)) == ""  # three of the four bytes are no character


def test_seeded_sampling_repeats(vlm: VisionLM, pictures: Pictures) -> None:
    """A seed gives one answer, other seeds give others, and none is greedy's."""
    answers = [vlm.ask(pictures[0], "what?", temperature=1.5, seed=seed).text for seed in range(6)]
    assert answers == [vlm.ask(pictures[0], "what?", temperature=1.5, seed=seed).text for seed in range(6)]
    assert len({*answers, vlm.ask(pictures[0], "what?").text}) == 7


def test_a_picture_is_encoded_once(vit_checkpoint: Checkpoint, pictures: Pictures) -> None:
    """The same picture many times, from several sources, in several calls, is encoded once; so is its prompt."""
    vlm = VisionLM(vit_checkpoint, device="cpu")
    tokens = vlm.encode_images([pictures[0], pictures[1], pictures[0].copy()])
    assert vlm.engine.images.encoded == 2
    assert [tuple(one.shape) for one in tokens] == [(16, 64)] * 3
    assert torch.equal(tokens[0], tokens[2])
    assert not torch.equal(tokens[0], tokens[1])
    vlm.ask([pictures[0], pictures[0].copy()] * 50, "what?", max_tokens=1)
    assert vlm.engine.images.encoded == 2
    assert vlm.engine.scheduler.shared_tokens == 99 * 16  # a page of image tokens


def test_answers_take_the_form_that_is_asked_for(vlm: VisionLM, pictures: Pictures) -> None:
    """Choices, a regular expression and a JSON schema hold, alone and in one batch; streams say the same."""
    schema = {
        "type": "object",
        "properties": {"count": {"type": "integer", "minimum": 0, "maximum": 99}, "cat": {"type": "boolean"}},
        "required": ["count", "cat"],
        "additionalProperties": False,
    }
    chosen = vlm.ask(pictures, "which?", choices=["red", "green", "teal"])
    assert {str(one) for one in chosen} <= {"red", "green", "teal"}
    assert all(isinstance(one, Answer) and one.finish_reason == "stop" for one in chosen)
    assert re.fullmatch(r"[0-9]{2}-[a-f]+", str(vlm.ask(pictures[0], "which?", regex=r"[0-9]{2}-[a-f]{1,3}")))
    answer = vlm.ask(pictures[0], "what?", json_schema=schema, max_tokens=60)
    assert set(json.loads(answer.text)) == {"count", "cat"}
    assert "".join(vlm.stream(pictures[0], "what?", json_schema=schema, max_tokens=60)) == answer.text
    with pytest.raises(RequestError, match="json_schema is .*; give"):
        vlm.ask(pictures[0], "what?", json_schema={"type": "no such type"})


def test_alternatives_come_with_the_answer(vlm: VisionLM, pictures: Pictures) -> None:
    """With `top_logprobs` each token has so many likeliest ones, the greedy one first, at its own log-probability."""
    answer = vlm.ask(pictures[0], "what?", top_logprobs=3, max_tokens=8)
    assert [len(top) for top in answer.top_logprobs] == [3] * len(answer.tokens)
    assert tuple(top[0] for top in answer.top_logprobs) == tuple(
        zip(answer.tokens, answer.token_logprobs, strict=True)
    )
    assert vlm.ask(pictures[0], "what?", max_tokens=8).top_logprobs == ()
