"""What the page needs of a model, wherever it runs."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

from vision_lm.explain import Explanation
from vision_lm.prompts import CaptionLength, Turn


@dataclass(frozen=True)
class Settings:
    """What a visitor may choose."""

    model: str
    temperature: float = 0.0  # 0 is greedy
    max_tokens: int | None = None  # None: as many as the model's own default
    checked: bool = False  # a caption: what the model does not find when it is asked for it is taken back


@dataclass(frozen=True)
class Reply:
    """An answer so far; once it is complete with how sure the model is."""

    text: str
    confidence: float | None = None  # 0 to 1, calibrated
    finish_reason: str | None = None
    unanswerable: bool = False  # less sure than the checkpoint's threshold
    unconfirmed: tuple[str, ...] = ()  # what a checked caption first named, and does not say any more


Writing: TypeAlias = Generator[Reply, None, None]  # the same answer growing; closing it stops the model


class Backend(Protocol):
    """Every method raises VisionLMError. Pictures in turns are paths. Any thread may call."""

    @property
    def models(self) -> Sequence[str]:
        """The checkpoints by name, the one to begin with first."""

    @property
    def place(self) -> str:
        """Where the models run, in a few words."""

    def caption(self, picture: Path, length: CaptionLength, settings: Settings) -> Writing: ...

    def answer(self, turns: Sequence[Turn], settings: Settings) -> Writing:
        """The answer to the last turn."""

    def explain(self, turns: Sequence[Turn], picture: int, answer: str, settings: Settings) -> Explanation:
        """Where in one of the turns' pictures, counted from 0, this answer to the last turn comes from."""

    def explain_caption(
        self, picture: Path, length: CaptionLength, caption: str, settings: Settings
    ) -> Explanation: ...
