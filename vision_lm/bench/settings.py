"""What is to be measured."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass

from vision_lm.engine import Mode
from vision_lm.errors import RequestError

QUESTION = 32  # tokens of text after the picture, unless told otherwise
MODES = ("int8", "int4")


@dataclass(frozen=True)
class Settings:
    """One run of the benchmark. Raises RequestError for a value that makes no sense."""

    model: str = "mini"  # an embedded name, a folder or a hub id, unless `shape` is given
    shape: str | None = None  # one of `shapes.SHAPES`: random weights, no file
    device: str = "auto"
    dtype: str = "auto"
    quantize: Mode = None
    concurrency: tuple[int, ...] = (1, 4, 16)  # streams at once
    prompt: int | None = None  # tokens, the picture's included; None: the picture's and QUESTION more
    tokens: int = 32  # generated for each prompt
    repeat: int = 3  # times that each figure is measured; the median counts

    def __post_init__(self) -> None:
        for name, value, least in (
            ("--tokens", self.tokens, 2),  # two tokens have one time between them
            ("--repeat", self.repeat, 1),
            ("--prompt", self.prompt, 1),
            *(("--concurrency", streams, 1) for streams in self.concurrency),
        ):
            if value is not None and value < least:
                raise RequestError(f"{name} is {value}; give at least {least}")
        if self.quantize not in (None, *MODES):
            raise RequestError(f"--quantize {self.quantize!r} is unknown; give {' or '.join(MODES)}")

    def prompt_tokens(self, picture: int, positions: int) -> int:
        """Tokens of a prompt whose picture takes `picture`. RequestError: they, or the answer's, do not fit."""
        prompt = picture + QUESTION if self.prompt is None else self.prompt
        if prompt <= picture:
            raise RequestError(
                f"--prompt is {prompt}, but the picture alone takes {picture} tokens; give more than {picture}"
            )
        if prompt + self.tokens > positions:
            raise RequestError(
                f"--prompt {prompt:,} and --tokens {self.tokens:,} are more than the model's {positions:,} positions; "
                "give less of one"
            )
        return prompt

    @property
    def command(self) -> str:
        """The command line that measures the same again."""
        options = {
            "--model": None if self.shape else self.model,
            "--shape": self.shape,
            "--device": self.device,
            "--dtype": self.dtype,
            "--quantize": self.quantize,
            "--concurrency": ",".join(map(str, self.concurrency)),
            "--prompt": self.prompt,
            "--tokens": self.tokens,
            "--repeat": self.repeat,
        }
        given = [word for name, value in options.items() if value is not None for word in (name, str(value))]
        return shlex.join(["vision-lm", "bench", *given])


def counts(text: str) -> tuple[int, ...]:
    """Whole numbers between commas, as in "1,4,16". Raises RequestError."""
    if not re.fullmatch(r"-?\d{1,6}(,-?\d{1,6})*", text, re.ASCII):
        raise RequestError(f"--concurrency is {text[:40]!r}; give numbers of streams such as 1,4,16")
    return tuple(int(one) for one in text.split(","))
