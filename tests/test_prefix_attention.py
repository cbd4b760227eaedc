"""A picture that opens a prompt is seen in both directions: every answer is transformers' Phi's under that mask."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.conftest import random_phi, text_config
from tests.noise_pictures import IMAGE_TOKENS, PLACEHOLDER, Noise, encode, engine_of
from tests.test_oracles import DECODERS, decoder_of
from vision_lm.engine import Generation, Prompt, Sampling, TorchDecoder
from vision_lm.engine.kv_cache import KVCache
from vision_lm.engine.pages import PAGE
from vision_lm.engine.torch_decoder import Chunk

BOS = 80
ANSWER = 8
TEXT = text_config(attention="prefix", num_hidden_layers=3)
LIMITS: dict[str, dict[str, Any]] = {
    "at once": {},
    "in pieces": {"chunk": 5, "step_tokens": 9, "running": 8},  # each smaller than a picture
    "short of pages": {"chunk": 7, "cache_tokens": 160},  # room for two or three: preempted again and again
}


@pytest.fixture(scope="module")
def phi() -> Any:
    torch.manual_seed(0)
    return random_phi(TEXT)


def prompts() -> list[Prompt]:
    """With a picture after the first token or before all, with two, with one after a text, and with none."""
    chance = random.Random(1)
    made = []
    for number in range(30):
        images = [Noise(chance.randrange(4)) for _ in range((1, 1, 2, 1, 0)[number % 5])]
        before = {3: [BOS, *range(20)], 1: []}.get(number % 5, [BOS])
        text = [chance.randrange(80) for _ in range(chance.randint(1, 40))]
        made.append(Prompt([*before, *[PLACEHOLDER] * IMAGE_TOKENS * len(images), *text], images))
    return made


@torch.no_grad()
def answer(phi: Any, prompt: Prompt, *, prefix: bool = True) -> tuple[list[int], list[float]]:
    """Greedy tokens and their log-probabilities by transformers' Phi, given the mask; all anew for each token."""
    places = [place for place, one in enumerate(prompt.ids) if one == PLACEHOLDER]
    embeddings = phi.get_input_embeddings()(torch.tensor(prompt.ids))
    if places:
        embeddings[places] = torch.cat(encode(prompt.images))
    opened = places[0] + IMAGE_TOKENS if prefix and places and places[0] <= 1 else 0
    tokens: list[int] = []
    logprobs: list[float] = []
    for _ in range(ANSWER):
        seen = torch.ones(len(embeddings), len(embeddings)).tril().bool()  # (T, T)
        seen[:opened, :opened] = True
        mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
        logits = phi(inputs_embeds=embeddings[None], attention_mask=mask[None, None]).logits[0, -1]
        tokens.append(int(logits.argmax()))
        logprobs.append(float(logits.log_softmax(-1).max()))
        embeddings = torch.cat([embeddings, phi.get_input_embeddings()(torch.tensor(tokens[-1:]))])
    return tokens, logprobs


def equal(one: Generation, said: tuple[list[int], list[float]]) -> bool:
    """The same tokens, as likely; a loop may have ended them early."""
    tokens, logprobs = (part[: len(one.tokens)] for part in said)
    return (
        bool(one.tokens) and list(one.tokens) == tokens and one.logprobs == pytest.approx(logprobs, abs=1e-3)
    )


@pytest.fixture(scope="module")
def expected(phi: Any) -> list[tuple[list[int], list[float]]]:
    return [answer(phi, prompt) for prompt in prompts()]


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("limits", LIMITS)
def test_every_answer_is_phis_under_the_mask(
    phi: Any, expected: list[tuple[list[int], list[float]]], kind: str, limits: str
) -> None:
    """In batches, in pieces, after preemption, and once more with every prefix in the cache."""
    engine = engine_of(decoder_of(kind, TEXT, phi.state_dict()), **LIMITS[limits])
    for _ in range(2):
        answers = engine.generate(prompts(), Sampling(max_tokens=ANSWER))
        assert all(map(equal, answers, expected))
    assert engine.scheduler.shared_tokens > 0
    assert (engine.scheduler.preemptions > 0) == (limits == "short of pages")
    assert engine.pages.used == 0


def test_the_mask_is_what_makes_the_answers(phi: Any, expected: list[tuple[list[int], list[float]]]) -> None:
    """The same Phi, causal, answers otherwise where a picture opens the prompt, and the same where none does."""
    engine = engine_of(decoder_of("torch", replace(TEXT, attention="causal"), phi.state_dict()))
    causal = engine.generate(prompts(), Sampling(max_tokens=ANSWER))
    assert all(
        equal(one, answer(phi, asked, prefix=False)) for one, asked in zip(causal, prompts(), strict=True)
    )
    apart = [abs(one.logprobs[0] - logprobs[0]) for one, (_, logprobs) in zip(causal, expected, strict=True)]
    opened = [one for number, one in enumerate(apart) if number % 5 < 3]
    assert sum(one > 5e-3 for one in opened) >= len(opened) - 1 and sum(opened) > 1
    assert max(one for number, one in enumerate(apart) if number % 5 > 2) < 1e-4


def test_pages_that_end_inside_a_picture_are_shared(phi: Any) -> None:
    """A picture's first page is found, its last one was evicted: the rest is computed with what it still sees."""
    pages = 8
    engine = engine_of(decoder_of("torch", TEXT, phi.state_dict()), cache_tokens=pages * PAGE)
    asked = Prompt([BOS, *[PLACEHOLDER] * IMAGE_TOKENS, *range(20)], [Noise(1)])
    other = Prompt([BOS, *[PLACEHOLDER] * IMAGE_TOKENS, *range(30, 50)], [Noise(1)])
    filler = Prompt(list(range(70)) + list(range(20)))
    engine.generate([asked], Sampling(max_tokens=1))
    engine.generate([filler], Sampling(max_tokens=16))  # 7 of 8 pages
    before = engine.scheduler.shared_tokens
    said = engine.generate([other], Sampling(max_tokens=ANSWER))[0]
    assert engine.scheduler.shared_tokens - before == PAGE < 1 + IMAGE_TOKENS
    assert equal(said, answer(phi, other))


def test_a_picture_larger_than_a_chunk_waits_for_a_step_of_its_own_and_others_go_on(phi: Any) -> None:
    """Steps stay within their limits but for one picture at a time, and what decodes gets a token in every step."""
    engine = engine_of(decoder_of("torch", TEXT, phi.state_dict()), chunk=8, step_tokens=16)
    seen: list[list[tuple[int, int]]] = []
    run = engine.runner.run

    def watched(spans: Any) -> Any:
        seen.append([(span.start, span.count) for span in spans])
        return run(spans)

    engine.runner.run = watched  # type: ignore[method-assign]
    engine.generate(prompts()[:10], Sampling(max_tokens=ANSWER))
    prefills = [[(start, count) for start, count in step if count > 1] for step in seen]
    for step in prefills:
        assert sum(count for _, count in step) <= max(16, 1 + IMAGE_TOKENS)
        assert not any(count > 16 for _, count in step[1:])  # nothing was before it in its step
    assert any(count >= IMAGE_TOKENS for step in prefills for _, count in step)


@pytest.mark.parametrize("kind", DECODERS)
def test_a_chunk_that_cuts_a_picture_is_refused(phi: Any, kind: str) -> None:
    decoder = decoder_of(kind, TEXT, phi.state_dict())
    cache = KVCache(TEXT, 4, decoder.device, decoder.dtype)
    with pytest.raises(ValueError, match="ends at 8, inside of the 9 tokens"):
        chunk = Chunk(0, 8, cache.slots([0], 8), True, prefix=9)
        decoder.prefill(torch.randn(8, TEXT.hidden_size), [chunk], cache)


def logits_in_two(decoder: TorchDecoder, embeddings: Tensor, cut: int) -> Tensor:
    """Logits (1, V) after a prompt that is prefilled in two pieces."""
    cache = KVCache(TEXT, 8, decoder.device, decoder.dtype)
    slots = cache.slots(list(range(8)), len(embeddings))
    decoder.prefill(embeddings[:cut], [Chunk(0, cut, slots[:cut], False, prefix=20)], cache)
    rest = Chunk(cut, len(embeddings) - cut, slots, True, prefix=20)
    return decoder.prefill(embeddings[cut:], [rest], cache)


@pytest.mark.parametrize("cut", [20, 21, 39])
def test_pieces_after_the_picture_change_nothing(phi: Any, cut: int) -> None:
    decoder = decoder_of("torch", TEXT, phi.state_dict())
    embeddings = torch.randn(40, TEXT.hidden_size, generator=torch.Generator().manual_seed(3))
    cache = KVCache(TEXT, 8, decoder.device, decoder.dtype)
    whole = decoder.prefill(
        embeddings, [Chunk(0, 40, cache.slots(list(range(8)), 40), True, prefix=20)], cache
    )
    torch.testing.assert_close(logits_in_two(decoder, embeddings, cut), whole, atol=1e-4, rtol=1e-4)
