"""The measurements themselves, through the same doors that a service uses: pictures are opened, requests submitted."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from vision_lm.engine import Prompt, Sampling
from vision_lm.errors import VisionLMError
from vision_lm.model import VisionLM
from vision_lm.pictures import EncodedPicture, FittedPicture, Pictures

WIDTH, HEIGHT = 640, 480  # of a picture


@dataclass(frozen=True)
class Answered:
    """Seconds of one request, from a picture in memory to its tokens."""

    first_token_s: float
    token_s: list[float]  # between one token and the next


@dataclass(frozen=True)
class Streams:
    """Many requests at once: questions about one picture that the cache knows already."""

    streams: int
    tokens: int  # generated, of all streams together
    seconds: float  # from handing in the requests to the last token
    tokens_per_second: float
    decode_tokens_per_second: float  # once every stream has its first token
    overhead: float  # share of the engine's time that is not spent in the model


@dataclass(frozen=True)
class EngineTime:
    """Seconds that an engine has worked, and those of them that went into the model."""

    busy: float
    forward: float

    def overhead_since(self, before: EngineTime) -> float:
        """Share of the time since then that was not spent in the model."""
        return 1 - (self.forward - before.forward) / (self.busy - before.busy)


class Meter:
    """Asks one model prompts of `prompt` tokens, the picture's included, for answers of `tokens` tokens."""

    def __init__(self, vlm: VisionLM, prompt: int, tokens: int) -> None:
        self.vlm, self.prompt, self.tokens = vlm, prompt, tokens
        self._chance = random.Random(0)
        self._noise = np.random.default_rng(0)
        self._texts = [n for n in range(vlm.config.text.vocab_size) if n != vlm.config.prompt.image_token_id]

    def picture(self) -> Image.Image:
        """One that no cache knows."""
        return Image.fromarray(self._noise.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8))

    def answer(self, picture: Image.Image, tokens: int) -> Answered:
        """Ask a new question about a picture, alone. The clock runs while the picture is brought to size, too."""
        self.engine_time()
        start = time.perf_counter()
        prompt = self._question(Pictures(self.vlm.config.vision).open(picture))
        ticket = self.vlm.engine.submit(prompt, Sampling(max_tokens=tokens))
        arrivals = [time.perf_counter() for _ in ticket]
        gaps = [after - before for before, after in zip(arrivals, arrivals[1:], strict=False)]
        return Answered(arrivals[0] - start, gaps)

    def streams(self, count: int, picture: Image.Image, repeat: int) -> Streams:
        """Ask so many new questions about one picture at once; medians of `repeat` times."""
        opened = Pictures(self.vlm.config.vision).open(picture)
        runs = [self._run([self._question(opened) for _ in range(count)]) for _ in range(repeat)]
        whole, rate, overhead = (statistics.median(values) for values in zip(*runs, strict=True))
        tokens = count * self.tokens
        return Streams(count, tokens, whole, tokens / whole, rate, overhead)

    def _run(self, prompts: Sequence[Prompt]) -> tuple[float, float, float]:
        """-> seconds, tokens a second once every stream has its first, overhead."""
        engine, sampling = self.vlm.engine, Sampling(max_tokens=self.tokens)
        before = self.engine_time()
        start = time.perf_counter()
        answers = [iter(engine.submit(prompt, sampling)) for prompt in prompts]
        received = sum(1 for answer in answers if next(answer, None) is not None)
        first, known = time.perf_counter(), engine.stats.generated_tokens
        received += sum(1 for answer in answers for _ in answer)
        end = time.perf_counter()
        if received != len(prompts) * self.tokens:
            raise VisionLMError(
                f"{received:,} of {len(prompts) * self.tokens:,} tokens came; use other weights"
            )
        rate = (engine.stats.generated_tokens - known) / (end - first)
        return end - start, rate, self.engine_time().overhead_since(before)

    def engine_time(self) -> EngineTime:
        """So far, once the engine is idle: it counts a step only after it has handed out the step's tokens."""
        self.vlm.engine.wait()
        stats = self.vlm.engine.stats
        return EngineTime(stats.busy_seconds, stats.forward_seconds)

    def _question(self, picture: FittedPicture | EncodedPicture) -> Prompt:
        """A picture, and text that was never asked about it."""
        ids = [self.vlm.config.prompt.image_token_id] * self.vlm.prompts.tokens_per_image
        return Prompt([*ids, *self._chance.choices(self._texts, k=self.prompt - len(ids))], [picture])
