"""What every engine offers, whichever process computes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from vision_lm.engine.request import Generation, Prompt
from vision_lm.engine.room import Room
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


class AnyEngine(ABC):
    """`Engine`, or one in another process."""

    room: Room
    pid: int  # of the process that computes

    @abstractmethod
    def submit(self, prompt: Prompt, sampling: Sampling) -> Ticket:
        """Queue a request; its ticket yields tokens and the result. Raises RequestError before it is queued."""

    @abstractmethod
    def counts(self) -> Counts:
        """As of the last step."""

    def check(self, length: int, sampling: Sampling) -> None:
        """Raise RequestError if a prompt of `length` tokens and its answer do not fit the model or the cache."""
        self.room.check(length, sampling)

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling | Sequence[Sampling]
    ) -> list[Generation]:
        """Generations of all prompts, in order. Raises RequestError before anything runs."""
        settings = [sampling] * len(prompts) if isinstance(sampling, Sampling) else list(sampling)
        for prompt, wanted in zip(prompts, settings, strict=True):
            self.check(len(prompt.ids), wanted)
        tickets = [self.submit(*pair) for pair in zip(prompts, settings, strict=True)]
        return [ticket.result() for ticket in tickets]
