"""What stops an answer: stop strings and loops."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence

import pytest
from tokenizers import Tokenizer, decoders, models

from tests.conftest import Pictures
from vision_lm.engine.stopping import Cycles, StopStrings
from vision_lm.model import VisionLM

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


def test_an_answer_ends_before_a_stop_string(vlm: VisionLM, pictures: Pictures) -> None:
    """Whole and streamed, the text is that of the free answer up to the first stop string in it."""
    for picture in pictures:
        free = vlm.ask(picture, "what?", temperature=1.5, seed=3, max_tokens=40)
        stop = free.text[7:9]
        cut = vlm.ask(picture, "what?", temperature=1.5, seed=3, max_tokens=40, stop=[stop, "never said"])
        assert cut.text == free.text[: free.text.index(stop)].rstrip("\ufffd").strip()
        assert cut.finish_reason == "stop"
        stream = vlm.stream(picture, "what?", temperature=1.5, seed=3, max_tokens=40, stop=stop)
        assert "".join(stream) == cut.text


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
