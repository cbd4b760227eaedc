"""Everything that a batch run can be told."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from vision_lm.images import ImageLimits
    from vision_lm.prompts import CaptionLength

Dedupe = Literal["exact", "perceptual"]
Order = Literal["input", "completed"]


def available_cores() -> int:
    """The processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class Settings:
    """What to answer about which pictures, and where the rows go.

    `inputs`: folders, glob patterns, pictures, http(s) URLs, zip and tar archives, lists (.txt, .csv, .tsv, .parquet),
    or "-" for a list on stdin. `out`: a file whose suffix says what it is (.jsonl, .csv, .parquet, .sqlite, .db), or a
    folder for a .txt beside or like each picture.
    """

    inputs: tuple[str, ...]
    out: Path
    caption: CaptionLength | None = None
    checked: bool = False  # the caption: what the model does not find when it is asked for it is taken back
    ask: tuple[str, ...] = ()
    questions: Path | None = (
        None  # .txt, a question a line; or .json, {"name": "question"}; {column} is filled in
    )
    json_schema: dict[str, Any] | bool | None = None  # the form of every answer that is no caption
    max_tokens: int | None = None  # of an answer; None: as many as `VisionLM.caption` and `ask` give it
    image_column: str | None = None  # of lists; None: image, path, file, filename, file_name or url
    dedupe: Dedupe | None = None  # pictures that are the same, or look the same, are answered once
    order: Order = "input"  # of the rows
    overwrite: bool = False  # begin anew where the output belongs to another run
    sheet: Path | None = None  # an HTML page of the pictures and their answers
    sheet_pictures: int = 2_000  # at most so many on it
    model: str = "mini"
    device: str = "auto"
    quantize: Literal["int8", "int4"] | None = None
    # That the encoder computes with, and the language model beside it, in a model that the run loads itself on a CPU.
    # None: what torch takes.
    threads: int | None = None
    workers: int = field(default_factory=lambda: min(available_cores(), 16))  # processes that open pictures
    picture_timeout: float = 120.0  # seconds for opening one; beyond them it has an error instead of answers
    limits: ImageLimits | None = None  # of a picture; None: those of `vision_lm.images`
    allow_url_hosts: tuple[str, ...] = ()
    progress: bool = False  # a bar on stderr
