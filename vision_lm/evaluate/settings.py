"""Everything that an evaluation can be told."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from vision_lm.prompts import CaptionLength

UNDER_WAY = 64  # requests, each with its picture in memory


@dataclass(frozen=True)
class TaskFiles:
    """Where a task's published files are; each reader in `vision_lm.evaluate.published` names those it needs."""

    questions: Path | None = None
    annotations: Path | None = None
    images: Path | None = None
    splits: Path | None = None  # ScienceQA's pid_splits.json
    split: str = "test"  # of ScienceQA
    data: Path = Path("data")  # what `vision-lm data build` made, for our own tasks


@dataclass(frozen=True)
class Settings:
    """Which task, on which files, by which model, and where the results go."""

    task: str
    out: Path  # the result folder
    files: TaskFiles = field(default_factory=TaskFiles)
    predictions: Path | None = None  # score this file, run no model
    blind: bool | None = None  # also answer without the picture; None: as the task has it
    skip_missing: bool = (
        False  # score what is there; what is missing is counted and the scores marked partial
    )
    limit: int | None = None  # so many items, chosen by the seed; the scores are marked partial
    prompt: str = "{question}"  # how a question is put to the model
    length: CaptionLength | None = None  # of captions; None: as the task has it
    max_tokens: int | None = None  # of an answer; None: as the task has it
    under_way: int = UNDER_WAY  # requests at once; in float32 never changes an answer
    seed: int = 0  # of the bootstrap and of `limit`
    resamples: int = 1_000  # of the bootstrap
    overwrite: bool = False  # begin anew where the folder belongs to another run
    model: str = "mini"
    device: str = "auto"
    dtype: str = "auto"
    quantize: Literal["int8", "int4"] | None = None
    progress: bool = False  # a bar on stderr
    command: str = ""  # the command line that gave these settings, for the record
