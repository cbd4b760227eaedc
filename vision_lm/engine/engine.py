"""The engine: prompts in, generations out, batched under a token budget."""

from __future__ import annotations

import random
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from vision_lm.engine.sampling import Sampling, choose
from vision_lm.engine.stopping import Cycles, FinishReason
from vision_lm.engine.torch_decoder import TorchDecoder
from vision_lm.errors import RequestError


@dataclass(frozen=True)
class Token:
    """One generated token and its log-probability."""

    id: int
    logprob: float


@dataclass(frozen=True)
class Generation:
    """What was generated for one prompt, without the stop token."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]  # under the model's own distribution, whatever the temperature
    finish_reason: FinishReason


class Running:
    """One request on its way: its tokens so far, its own randomness, and what would end it."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self.random = random.Random(sampling.seed)
        self.tokens: list[Token] = []
        self.cycles = Cycles()
        self.finish_reason: FinishReason | None = None

    def accept(self, token: Token) -> None:
        """Take the next token; it may be the last."""
        if token.id in self.sampling.stop_ids:
            self.finish_reason = "stop"
            return
        self.tokens.append(token)
        self.cycles.push(token.id)
        if self.cycles.looping:
            del self.tokens[-self.cycles.repeated :]
            self.finish_reason = "repetition"
        elif len(self.tokens) == self.sampling.max_tokens:
            self.finish_reason = "length"

    @property
    def certain(self) -> int:
        """How many tokens will stand in the generation whatever comes: a loop may yet drop the others."""
        return len(self.tokens) - (0 if self.finish_reason else self.cycles.repeated)

    def generation(self) -> Generation:
        assert self.finish_reason is not None
        ids, logprobs = tuple(t.id for t in self.tokens), tuple(t.logprob for t in self.tokens)
        return Generation(ids, logprobs, self.finish_reason)


class Engine:
    """Generates from prompt embeddings. It keeps nothing between calls, so calls may run side by side."""

    def __init__(self, decoder: TorchDecoder, token_budget: int = 8192) -> None:
        """The cache holds at most `token_budget` tokens at once; a request that needs more by itself runs alone."""
        self.decoder = decoder
        self.token_budget = token_budget

    def check(self, length: int, sampling: Sampling) -> None:
        """Raise RequestError if a prompt of `length` tokens and its answer exceed the model's positions."""
        positions = self.decoder.config.max_position_embeddings
        if length < 1:
            raise RequestError("the prompt is empty; give at least one token")
        if length + sampling.max_tokens > positions:
            raise RequestError(
                f"the prompt has {length:,} tokens, and max_tokens {sampling.max_tokens:,} of the model's "
                f"{positions:,} positions leave room for {max(positions - sampling.max_tokens, 0):,}; "
                "shorten the conversation, give fewer images, or lower max_tokens"
            )

    def generate(
        self, prompts: Sequence[Tensor], sampling: Sampling | Sequence[Sampling]
    ) -> list[Generation]:
        """Prompts (T_i, Dt) -> their generations, in order. Raises RequestError before anything runs."""
        settings = [sampling] * len(prompts) if isinstance(sampling, Sampling) else list(sampling)
        for prompt, wanted in zip(prompts, settings, strict=True):
            self.check(len(prompt), wanted)
        requests = [Running(wanted) for wanted in settings]
        for batch in self._batches([len(prompt) for prompt in prompts], settings):
            for _ in self._run([prompts[number] for number in batch], [requests[number] for number in batch]):
                pass
        return [request.generation() for request in requests]

    def stream(self, prompt: Tensor, sampling: Sampling) -> Generator[Token, None, Generation]:
        """Yield one prompt's tokens as soon as they are certain; the generator returns the whole."""
        self.check(len(prompt), sampling)
        request, sent = Running(sampling), 0
        for _ in self._run([prompt], [request]):
            yield from request.tokens[sent : request.certain]
            sent = max(sent, request.certain)
        return request.generation()

    def _batches(self, lengths: Sequence[int], settings: Sequence[Sampling]) -> Iterator[list[int]]:
        """Request numbers in batches within the budget; prompts of like length together, which wastes least."""
        batch: list[int] = []
        longest = answer = 0
        for number in sorted(range(len(lengths)), key=lambda n: lengths[n]):
            longest = lengths[number]
            answer = max(answer, settings[number].max_tokens)
            if batch and (len(batch) + 1) * (longest + answer) > self.token_budget:
                yield batch
                batch, answer = [], settings[number].max_tokens
            batch.append(number)
        if batch:
            yield batch

    def _run(self, prompts: Sequence[Tensor], requests: Sequence[Running]) -> Iterator[None]:
        """Prefill, then decode until every request has finished; yields after each token."""
        rows = list(requests)
        room = max(request.sampling.max_tokens for request in rows)
        logits, cache = self.decoder.prefill(prompts, room)  # (B, V)
        while True:
            draws = [request.random.random() for request in rows]
            ids, logprobs = choose(logits, [request.sampling for request in rows], draws)
            for request, token, logprob in zip(rows, ids, logprobs, strict=True):
                request.accept(Token(token, logprob))
            yield
            for row in reversed(range(len(rows))):
                if rows[row].finish_reason:
                    cache.drop(row)
                    rows[row] = rows[-1]  # as the cache does
                    rows.pop()
            if not rows:
                return
            logits = self.decoder.step([request.tokens[-1].id for request in rows], cache)
