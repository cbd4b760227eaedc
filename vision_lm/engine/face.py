"""What every engine offers, whichever process computes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from vision_lm.engine.request import Generation, Prompt
from vision_lm.engine.sampling import Sampling
from vision_lm.engine.ticket import Ticket


@dataclass(frozen=True)
class Counts:
    """What an engine has done so far, and what it is at."""

    prompt_tokens: int  # computed
    shared_tokens: int  # of prompts, found in the cache instead
    generated_tokens: int
    pictures_encoded: int
    preemptions: int
    pages_used: int
    pages_available: int
    running: int  # requests
    waiting: int


class AnyEngine(Protocol):
    """`Engine`, or one in another process."""

    @property
    def pid(self) -> int:
        """Of the process that computes."""

    def check(self, length: int, sampling: Sampling) -> None:
        """Raise RequestError if a prompt of `length` tokens and its answer do not fit the model or the cache."""

    def submit(self, prompt: Prompt, sampling: Sampling) -> Ticket:
        """Queue a request; its ticket yields tokens and the result. Raises RequestError before it is queued."""

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling | Sequence[Sampling]
    ) -> list[Generation]:
        """Generations of all prompts, in order. Raises RequestError before anything runs."""

    def counts(self) -> Counts:
        """As of the last step."""


def generate(
    engine: AnyEngine, prompts: Sequence[Prompt], sampling: Sampling | Sequence[Sampling]
) -> list[Generation]:
    """`AnyEngine.generate`, from `check` and `submit`."""
    settings = [sampling] * len(prompts) if isinstance(sampling, Sampling) else list(sampling)
    for prompt, wanted in zip(prompts, settings, strict=True):
        engine.check(len(prompt.ids), wanted)
    tickets = [engine.submit(*pair) for pair in zip(prompts, settings, strict=True)]
    return [ticket.result() for ticket in tickets]
