"""A row of the output: one picture, its answers with their confidence, its times, its error."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vision_lm.batch.questions import Question
from vision_lm.batch.records import Done

Row = dict[str, Any]  # by column; None where there is nothing
DIGITS = 4  # of confidences and seconds


@dataclass(frozen=True)
class Column:
    """One column, the same in every format."""

    name: str
    kind: type[str] | type[float] | type[bool]


class Table:
    """The columns that a run's questions make, and its rows."""

    def __init__(self, questions: Sequence[Question], *, json_answers: bool) -> None:
        """`json_answers`: answers that are no captions are JSON."""
        self._questions, self._json = questions, json_answers
        columns = [Column("image", str)]
        for one in questions:
            columns += [Column(one.name, str), Column(f"{one.name}_confidence", float)]
            columns += [Column(f"{one.name}_finish_reason", str)]
            if one.length is None or one.checked:
                columns.append(Column(f"{one.name}_unanswerable", bool))
            if one.checked:
                columns.append(Column(f"{one.name}_unconfirmed", str))
            if one.length is None:
                columns.append(Column(f"{one.name}_question", str))
        columns += [Column("content", str), Column("duplicate_of", str)]
        columns += [Column("open_seconds", float), Column("answer_seconds", float)]
        columns += [Column("cause", str), Column("error", str)]
        self.columns = tuple(columns)
        self.answer_names = tuple(one.name for one in questions)
        self.json_columns = frozenset(
            [one.name for one in questions if json_answers and one.length is None]
            + [f"{one.name}_unconfirmed" for one in questions if one.checked]
        )

    def row(self, done: Done) -> Row:
        result = done.result
        row: Row = {column.name: None for column in self.columns}
        row["image"] = done.planned.item.image
        for question, answer in zip(
            self._questions, result.answers, strict=False
        ):  # a failure has no answers
            row[question.name] = answer.text
            row[f"{question.name}_confidence"] = round(answer.confidence, DIGITS)
            row[f"{question.name}_finish_reason"] = answer.finish_reason
            if question.length is None or question.checked:
                row[f"{question.name}_unanswerable"] = answer.unanswerable
            if question.checked:
                row[f"{question.name}_unconfirmed"] = json.dumps(answer.unconfirmed, ensure_ascii=False)
            if question.length is None:
                row[f"{question.name}_question"] = answer.question
        row["content"], row["duplicate_of"] = result.content, result.duplicate_of
        row["open_seconds"] = round(result.open_seconds, DIGITS)
        row["answer_seconds"] = round(result.answer_seconds, DIGITS)
        row["cause"], row["error"] = result.cause, result.error
        return row

    def text(self, done: Done) -> str | None:
        """What a sidecar holds: the answer, or a line for each; None for a failure."""
        answers = done.result.answers
        if not answers:
            return None
        if len(answers) == 1:
            return answers[0].text + "\n"
        lines = [f"{one.name}: {answer.text}" for one, answer in zip(self._questions, answers, strict=True)]
        return "".join(line.replace("\n", " ") + "\n" for line in lines)

    def json_line(self, row: Row) -> str:
        """A row as a line of JSON; lists, and what was asked for as JSON unless it was cut off, are no strings in it."""
        values = {key: _parsed(value) if key in self.json_columns else value for key, value in row.items()}
        return json.dumps(values, ensure_ascii=False) + "\n"


def _parsed(text: Any) -> Any:
    try:
        return json.loads(text)
    except (TypeError, ValueError):
        return text
