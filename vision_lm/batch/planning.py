"""Before a run begins: what is asked about which picture, and what can be refused at once."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import replace

from vision_lm.batch.journal import Journal
from vision_lm.batch.questions import Question
from vision_lm.batch.settings import Settings
from vision_lm.batch.sheet import check_sheet
from vision_lm.batch.sources import Item, expand
from vision_lm.batch.writers import SidecarWriter, Writer
from vision_lm.errors import BatchError, RequestError
from vision_lm.prompts import check_question


def plan(settings: Settings, questions: Sequence[Question]) -> Iterator[tuple[Item, tuple[str, ...]]]:
    """Every picture with its questions filled in. Raises BatchError for a column that a list lacks."""
    fields = tuple(dict.fromkeys(name for one in questions for name in one.fields))
    for item in expand(settings.inputs, settings.image_column, columns=bool(fields)):
        missing = [name for name in fields if name not in item.columns]
        if missing and not item.sample:
            raise BatchError(
                f"{settings.questions}: column {missing[0]!r} is unknown for {item.image}; allowed: "
                f"{', '.join(item.columns)}"
            )
        problem = item.problem
        asked = tuple("" if one.fields else one.text for one in questions)
        if missing:
            problem = (
                f"{item.image}: its sample has no {missing[0]!r}; it has {', '.join(sorted(item.columns))}"
            )
        elif fields:
            asked = tuple(one.filled(item.columns) for one in questions)
            problem = problem or _problem(item.image, asked, questions)
        yield replace(item, problem=problem, columns={}), asked


def _problem(image: str, asked: Sequence[str], questions: Sequence[Question]) -> str | None:
    try:
        for text, question in zip(asked, questions, strict=True):
            if question.fields:
                check_question(text)
    except RequestError as error:
        return f"{image}: {error}"
    return None


def check_settings(settings: Settings, writer: Writer) -> None:
    """What can be known at once. Raises BatchError."""
    for name in ("workers", "sheet_pictures"):
        if getattr(settings, name) < 1:
            raise BatchError(f"{name} is {getattr(settings, name)}; give at least 1")
    needed = {
        "imagehash": settings.dedupe == "perceptual",
        "pyarrow": settings.out.suffix.lower() == ".parquet",
    }
    needed |= {"tqdm": settings.progress}
    for package, wanted in needed.items():
        if wanted and importlib.util.find_spec(package) is None:
            raise BatchError(f"{package} is not installed; pip install 'vision-lm[batch]'")
    if settings.sheet is not None:
        check_sheet(settings.sheet)
    if writer.begun() and not writer.journal.exists() and not settings.overwrite:
        raise BatchError(
            f"{settings.out}: exists, without the journal ({writer.journal.name}) of a run that could go on; "
            "give another --out, or --overwrite"
        )


def check_sidecars(journal: Journal, writer: SidecarWriter, overwrite: bool) -> None:
    """Texts that would take each other's place, or that of someone else's. Raises BatchError."""
    taken: dict[int, int] = {}
    for planned, result in journal.pictures():
        if planned.item.problem:
            continue
        path = writer.path(planned.item.relative)
        # Hashes, as many as there are pictures, and no names: the memory stays small.
        if taken.setdefault(hash(path), planned.position) != planned.position:
            raise BatchError(
                f"{path}: would hold the text of {planned.item.image} and of another picture; give each a name of "
                "its own, or another --out, such as answers.jsonl"
            )
        if result is None and not overwrite and path.exists():
            raise BatchError(f"{path}: exists, and is not of this run; give another --out, or --overwrite")
