"""One request on its way through the engine: what is asked, what is computed, what is said so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from random import Random
from typing import Literal, Protocol

import torch
from torch import Tensor

from vision_lm.engine.given import Given
from vision_lm.engine.grammar import Matcher
from vision_lm.engine.pages import PAGE, seals
from vision_lm.engine.sampling import Row, Sampling, Token
from vision_lm.engine.stopping import Cycles, FinishReason, StopStrings


class Image(Protocol):
    """A picture as the engine knows it: two with the same digest are the same picture."""

    @property
    def digest(self) -> bytes: ...

    @property
    def nbytes(self) -> int: ...


@dataclass(frozen=True)
class Prompt:
    """Token ids, with a run of image placeholders for each of the pictures, in order."""

    ids: Sequence[int]  # (T,)
    images: Sequence[Image] = ()


@dataclass(frozen=True)
class Generation:
    """What was generated for one prompt, without the stop token."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]  # under the model's own distribution, whatever the temperature
    finish_reason: FinishReason
    tops: tuple[tuple[tuple[int, float], ...], ...] = ()  # `Token.top` of each
    rivals: tuple[float, ...] = ()  # `Token.rival` of each
    cut: int | None = None  # characters of the tokens' text that stand before a stop string, if one was found


@dataclass(frozen=True)
class ImagePlace:
    """Where a picture's tokens stand in the prompt."""

    image: Image
    start: int
    stop: int


class Request:
    """The state of one request. `computed` of its `length` tokens have their keys and values in `pages`."""

    def __init__(
        self,
        number: int,
        prompt: Prompt,
        sampling: Sampling,
        image_token_id: int,
        stop_strings: StopStrings | None = None,
        matcher: Matcher | Given | None = None,
        attention: Literal["causal", "prefix"] = "causal",
    ) -> None:
        self.number = number  # by arrival
        self.prompt, self.sampling = prompt, sampling
        self.stop_strings, self.matcher = stop_strings, matcher
        # Whether its next token is simply the likeliest one, of which nothing but its probability is asked.
        self.greedy = not (
            sampling.temperature or sampling.top_logprobs or sampling.repetition_penalty != 1 or matcher
        )
        self.tokens: list[Token] = []
        self.sent = 0  # of them, to the reader
        self.cycles = Cycles()
        self.finish_reason: FinishReason | None = None
        self.seen: Tensor | None = None  # (V,): the tokens that a repetition penalty makes less likely
        self.places = image_places(prompt, image_token_id)
        # Its first tokens that see each other in both directions, and so are computed together. They depend on tokens
        # after them, but each of their pages is known by the picture's digest, which names all of these: the first
        # page holds a token of the picture.
        self.prefix = self.places[0].stop if attention == "prefix" and _opens(self.places) else 0
        self.contents = _contents(prompt.ids, self.places)
        self.seals = seals(self.contents)
        self.pages: list[int] = []
        self.computed = 0
        self.sealed = 0  # pages

    @cached_property
    def random(self) -> Random:
        """Its own generator: seeded only where something is drawn."""
        return Random(self.sampling.seed)

    @property
    def length(self) -> int:
        """Tokens so far: the prompt's and the generated ones."""
        return len(self.contents)

    @property
    def pending(self) -> int:
        """Tokens still to be computed before the next can be chosen."""
        return len(self.contents) - self.computed

    def ids(self, start: int, stop: int) -> list[int]:
        """The token ids of a part."""
        prompt = len(self.prompt.ids)
        generated = [token.id for token in self.tokens[max(start - prompt, 0) : max(stop - prompt, 0)]]
        return [*self.prompt.ids[start:stop], *generated]

    def row(self, vocabulary: int) -> Row:
        """How the next of `vocabulary` tokens is to be chosen."""
        if self.seen is None and self.sampling.repetition_penalty != 1:
            pictured = {place for one in self.places for place in range(one.start, one.stop)}
            self.seen = torch.zeros(vocabulary, dtype=torch.bool)
            self.seen[[one for place, one in enumerate(self.prompt.ids) if place not in pictured]] = True
        allowed = self.matcher.mask() if self.matcher else None
        draw = self.random.random() if self.sampling.temperature else 0.0
        return Row(self.sampling, draw, self.seen, allowed)

    def accept(self, token: Token) -> None:
        """Take the next token; it may be the last."""
        if token.id in self.sampling.stop_ids:
            self.finish_reason = "stop"
            return
        self.tokens.append(token)
        self.contents.append(_text_content(token.id))
        if len(self.contents) % PAGE == 0:
            self.seals += seals(self.contents, len(self.seals), self.seals[-1] if self.seals else b"")
        self.cycles.push(token.id)
        if self.seen is not None:
            self.seen[token.id] = True
        if self.matcher:
            self.matcher.accept(token.id)
        if self.stop_strings:
            self.stop_strings.push(token.id)
        if self.stop_strings and self.stop_strings.cut is not None:
            del self.tokens[self.stop_strings.tokens :]
            self.finish_reason = "stop"
        elif self.matcher and self.matcher.done:
            self.finish_reason = "stop"
        elif self.cycles.looping and not self.matcher:  # what a form repeats was asked for
            del self.tokens[-self.cycles.repeated :]
            self.finish_reason = "repetition"
        elif len(self.tokens) == self.sampling.max_tokens:
            self.finish_reason = "length"

    @property
    def certain(self) -> int:
        """How many tokens will stand in the generation whatever comes: a loop or a stop string may yet drop others."""
        count = len(self.tokens)
        if self.finish_reason is None and not self.matcher:
            count -= self.cycles.repeated
        if self.stop_strings:
            count = min(count, self.stop_strings.certain_tokens)
        return count

    def generation(self) -> Generation:
        assert self.finish_reason is not None
        return Generation(
            tuple(token.id for token in self.tokens),
            tuple(token.logprob for token in self.tokens),
            self.finish_reason,
            tuple(token.top for token in self.tokens) if self.sampling.top_logprobs else (),
            tuple(token.rival for token in self.tokens),
            self.stop_strings.cut if self.stop_strings else None,
        )


def image_places(prompt: Prompt, image_token_id: int) -> list[ImagePlace]:
    """Where each picture's tokens stand. Raises ValueError if the placeholders cannot be shared out evenly."""
    if not prompt.images:
        return []
    places = [place for place, one in enumerate(prompt.ids) if one == image_token_id]
    size, rest = divmod(len(places), len(prompt.images))
    if not size or rest:
        raise ValueError(f"{len(places)} image placeholders for {len(prompt.images)} pictures")
    return [
        ImagePlace(image, places[number * size], places[number * size + size - 1] + 1)
        for number, image in enumerate(prompt.images)
    ]


def _opens(places: Sequence[ImagePlace]) -> bool:
    """Whether a picture opens the prompt, alone or after the one token that every prompt begins with."""
    return bool(places) and places[0].start <= 1


def _contents(ids: Sequence[int], places: Sequence[ImagePlace]) -> list[bytes]:
    """What tells each token from others: its id, or its picture and its place in the picture."""
    contents = [_text_content(one) for one in ids]
    for place in places:
        for offset in range(place.stop - place.start):
            contents[place.start + offset] = b"i" + place.image.digest + offset.to_bytes(4, "little")
    return contents


def _text_content(token_id: int) -> bytes:
    return b"t" + token_id.to_bytes(4, "little")
