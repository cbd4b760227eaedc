"""Pictures in the engine: how many are kept, encoded in a step and allowed in a prompt."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from tests.conftest import Pictures, message
from tests.noise_pictures import IMAGE_TOKENS, PLACEHOLDER, Noise, encode, engine_of, random_decoder
from vision_lm.engine import Engine, Generation, Prompt, Sampling, TorchDecoder
from vision_lm.errors import RequestError
from vision_lm.model import VisionLM

ENCODED = IMAGE_TOKENS * 64 * 4  # bytes of one picture
ASKED = Sampling(max_tokens=6)


@pytest.fixture(scope="module")
def decoder() -> TorchDecoder:
    return random_decoder()


def about(picture: int, start: int = 1) -> Prompt:
    """A question about one picture; with another start no page of it is shared."""
    return Prompt([start, *[PLACEHOLDER] * IMAGE_TOKENS, 5, 60], [Noise(picture)])


class Asker:
    """Asks about one picture after the other, each time with a new beginning, so that only its encoding can be there."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self._starts = engine, iter(range(6, 80))

    def __call__(self, picture: int) -> bool:
        """-> whether the picture was encoded for it."""
        before = self.engine.images.encoded
        self.engine.generate([about(picture, next(self._starts))], ASKED)
        return self.engine.images.encoded > before


def test_the_picture_that_was_used_longest_ago_is_dropped(decoder: TorchDecoder) -> None:
    """Room for three: the fourth takes the place of the one that nobody asked about for longest."""
    engine = Engine(decoder, encode, PLACEHOLDER, cache_tokens=4096, image_bytes=3 * ENCODED + 100)
    ask = Asker(engine)
    assert [ask(picture) for picture in (1, 2, 3, 1, 4)] == [True, True, True, False, True]
    assert [ask(picture) for picture in (1, 3, 4)] == [False, False, False]
    assert ask(2)  # which took the place of 1
    assert [ask(picture) for picture in (3, 4, 2, 1)] == [False, False, False, True]


@pytest.mark.parametrize("room", [0, 1, 3, 7])
def test_the_budget_is_never_exceeded_and_changes_no_answer(decoder: TorchDecoder, room: int) -> None:
    """Whatever comes, alone, together or several in a prompt; a picture that was dropped is encoded anew and looks the same."""
    plenty = engine_of(decoder, chunk=30)
    short = Engine(decoder, encode, PLACEHOLDER, cache_tokens=160, image_bytes=room * ENCODED + 100)
    watched: list[int] = []
    get = short.images.get

    def got(images: Any) -> Any:
        found = get(images)
        watched.append(short.images.nbytes)
        return found

    short.images.get = got  # type: ignore[method-assign]
    prompts = [about(number % 9, number % 7) for number in range(40)]
    prompts += [
        Prompt([3, *[PLACEHOLDER] * 4 * IMAGE_TOKENS, 5], [Noise(one + part) for part in range(4)])
        for one in range(6)
    ]
    answers: list[list[Generation]] = [engine.generate(prompts, ASKED) for engine in (plenty, short)]
    assert [one.tokens for one in answers[0]] == [one.tokens for one in answers[1]]
    assert max(watched) == room * ENCODED
    assert plenty.images.encoded == 9
    assert short.images.encoded > 9


def test_a_step_beside_a_stream_encodes_few_pictures(decoder: TorchDecoder) -> None:
    """Forty pictures that arrive at once: the stream has its token in every step, and none of these encodes more
    pictures than a chunk of prompts has room for.
    """
    chunk = 2 * IMAGE_TOKENS
    engine = engine_of(decoder, chunk=chunk)
    steps: list[tuple[bool, int]] = []  # whether the stream is in it, and how many pictures it encodes
    run, arrived = engine.runner.run, threading.Event()

    def counted(spans: Any) -> Any:
        if steps:
            arrived.wait()
        before = engine.images.encoded
        outcome = run(spans)
        streamed = any(span.request.number == 0 for span in spans)
        steps.append((streamed, engine.images.encoded - before))
        return outcome

    engine.runner.run = counted  # type: ignore[method-assign]
    stream = iter(engine.submit(Prompt([5, 6, 7]), Sampling(max_tokens=200, temperature=50.0, seed=1)))
    next(stream)
    prompts = [about(picture) for picture in range(40)]
    tickets = [engine.submit(prompt, ASKED) for prompt in prompts]
    arrived.set()
    answers = [ticket.result().tokens for ticket in tickets]
    stream.close()
    engine.wait()
    pictured = [one for one in steps if one[1]]
    assert sum(count for _, count in pictured) == 40
    assert len(pictured) >= 20
    assert all(streamed and count <= chunk // IMAGE_TOKENS for streamed, count in pictured)
    assert answers == [engine_of(decoder).generate([prompt], ASKED)[0].tokens for prompt in prompts]


def test_more_pictures_than_fit_are_refused_before_anything_is_queued(decoder: TorchDecoder) -> None:
    """At the engine's door, by the model's positions and by the cache; a prompt of as many as fit is answered."""
    for cache_tokens, most in ((4096, 12), (128, 6)):  # of 256 positions, and of the cache
        engine = engine_of(decoder, cache_tokens=cache_tokens)
        fitting, large = (
            Prompt([1, *[PLACEHOLDER] * count * IMAGE_TOKENS], [Noise(one) for one in range(count)])
            for count in (most, most + 1)
        )
        with pytest.raises(RequestError, match="fewer images"):
            engine.generate([fitting, large], ASKED)
        assert (engine.stats.steps, engine.images.encoded) == (0, 0)
        assert engine.generate([fitting], ASKED)[0].tokens
        assert engine.images.encoded == most


def test_a_conversation_with_too_many_pictures_is_refused_and_the_next_one_answered(
    vlm: VisionLM, pictures: Pictures
) -> None:
    """At the model's door, in its place of a list; of the refused one no picture is encoded."""
    many = [message("how many?", [pictures[one % 8] for one in range(20)])]
    one = [message("what?", pictures[:1])]
    vlm.chat(one)
    before = vlm.engine.counts()
    with pytest.raises(RequestError, match="fewer images"):
        vlm.chat(many)
    assert vlm.engine.counts() == before
    refused, answer = vlm.chat([many, one])
    assert isinstance(refused, RequestError)
    assert str(answer) == str(vlm.chat(one))
    assert vlm.engine.counts().pictures_encoded == before.pictures_encoded


def test_pictures_that_wait_together_are_encoded_together(decoder: TorchDecoder) -> None:
    """Twelve requests that arrive while another is computed: their pictures go to the encoder in a call or two, not one each."""
    begun, all_wait, calls = threading.Event(), threading.Event(), list[int]()

    def counted(images: Any) -> Any:
        calls.append(len(images))
        begun.set()
        all_wait.wait()
        return encode(images)

    engine = Engine(decoder, counted, PLACEHOLDER, cache_tokens=4096)
    first = engine.submit(about(50), Sampling(max_tokens=1))
    begun.wait()
    tickets = [engine.submit(about(picture), ASKED) for picture in range(12)]
    all_wait.set()
    first.result()
    found = [ticket.result().tokens for ticket in tickets]
    assert sum(calls) == 13 and len(calls) <= 3 and max(calls) >= 6
    assert found == [engine_of(decoder).generate([about(picture)], ASKED)[0].tokens for picture in range(12)]
