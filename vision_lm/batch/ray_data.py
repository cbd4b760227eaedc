"""Pictures of a Ray dataset, answered by copies of the model on one machine or many.

    rows with a picture ──▶ Ray: blocks ──▶ replicas, each with an engine of its own ──▶ the rows with answers

Ray reads and writes the rows (`ray.data.read_images`, `read_parquet`, `write_parquet`, ...), spreads them and repeats
what a lost machine had. For one machine `vision_lm.batch.run` is the better tool: it resumes, finds duplicates, and
keeps a journal.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

import vision_lm
from vision_lm.answer import Answer
from vision_lm.batch.questions import RESERVED, Question, fields_of
from vision_lm.errors import BatchError
from vision_lm.prompts import CaptionLength, check_question

if TYPE_CHECKING:
    from ray.data import Dataset

TOGETHER = 64  # rows handed to a replica at once: they are batched by its engine


def answer(
    dataset: Dataset,
    *,
    caption: CaptionLength | None = None,
    checked: bool = False,
    ask: Mapping[str, str] | Sequence[str] = (),
    image: str = "image",
    model: str = "mini",
    device: str = "auto",
    quantize: str | None = None,
    replicas: int | tuple[int, int] = 1,
    cpus: float = 1,
    gpus: float = 0,
) -> Dataset:
    """The dataset with a column of answers for each question, one of their confidences, and one of errors.

    `image` is the column with the pictures: arrays (H, W, 3) of uint8, encoded bytes, or paths that every machine can
    read. `ask` gives questions by the names of their columns, or without names ("answer_1", ...); {column} in one is
    filled in. `checked`: of the caption, as for `VisionLM.caption`; with a column `caption_unconfirmed`, a JSON array of
    what was taken back. `replicas`: so many copies of the model, or (least, most) as Ray sees fit, each with its `cpus` and
    `gpus`. Lazy, as all of Ray Data. Raises BatchError, RequestError for what cannot be asked.
    """
    columns = dataset.columns() or []
    if image not in columns:
        raise BatchError(f"the dataset has no column {image!r}; it has: {', '.join(columns)}")
    questions = _questions(caption, ask, columns, checked=checked)
    # Ray's cores are counted; torch would take all of them in every replica.
    return dataset.map_batches(
        Replica,
        fn_constructor_args=(model, device, quantize, questions, image),
        concurrency=replicas,
        batch_size=TOGETHER,
        num_cpus=cpus,
        num_gpus=gpus,
    )


class Replica:
    """One copy of the model, in a process of Ray's."""

    def __init__(
        self, model: str, device: str, quantize: Any, questions: Sequence[Question], image: str
    ) -> None:
        self._vlm = vision_lm.load(model, device, quantize=quantize)
        self._questions, self._image = questions, image

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        """A block of rows, with its new columns."""
        pictures = list(batch[self._image])
        found: dict[str, Any] = dict(batch)
        errors: list[str | None] = [None] * len(pictures)
        for question in self._questions:
            if question.length is not None:
                replies = self._vlm.caption(pictures, question.length, checked=question.checked)
            else:
                rows = [
                    {name: str(batch[name][row]) for name in question.fields} for row in range(len(pictures))
                ]
                replies = self._vlm.ask(pictures, [question.filled(row) for row in rows])
            answers: list[Answer | None] = []
            for row, reply in enumerate(replies):
                answers.append(reply if isinstance(reply, Answer) else None)
                if not isinstance(reply, Answer):
                    errors[row] = str(reply)
            found[question.name] = _column([one and one.text for one in answers])
            found[f"{question.name}_confidence"] = _column([one and one.confidence for one in answers])
            if question.checked:
                taken_back = [one and json.dumps(one.unconfirmed, ensure_ascii=False) for one in answers]
                found[f"{question.name}_unconfirmed"] = _column(taken_back)
        return found | {"error": _column(errors)}


def _questions(
    caption: CaptionLength | None,
    ask: Mapping[str, str] | Sequence[str],
    columns: Sequence[str],
    *,
    checked: bool,
) -> list[Question]:
    if isinstance(ask, str):
        raise BatchError(f"ask is {ask!r}; give a list of questions, or a mapping of names to questions")
    named = ask if isinstance(ask, Mapping) else {f"answer_{n}": text for n, text in enumerate(ask, start=1)}
    if checked and not caption:
        raise BatchError("checked is about a caption; give caption='short', 'normal' or 'long'")
    found = [Question("caption", length=caption, checked=checked)] if caption else []
    for name, text in named.items():
        fields = fields_of(text, name)
        if unknown := sorted(set(fields) - set(columns)):
            raise BatchError(
                f"{name}: the dataset has no column {unknown[0]!r}; it has: {', '.join(columns)}"
            )
        found.append(Question(name, check_question(text), fields))
    if not found:
        raise BatchError("nothing is asked; give caption='short', 'normal' or 'long', or ask=[...]")
    new = [f"{one.name}{suffix}" for one in found for suffix in ("", "_confidence")]
    new += [f"{one.name}_unconfirmed" for one in found if one.checked]
    taken = {*columns, *RESERVED} & set(new)
    if taken:
        raise BatchError(f"a column {sorted(taken)[0]!r} is there already; give the question another name")
    return found


def _column(values: Sequence[Any]) -> np.ndarray:
    """Of objects: None stays None."""
    column = np.empty(len(values), dtype=object)
    column[:] = values
    return column
