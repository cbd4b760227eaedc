"""The contact sheet: one HTML file with small pictures and what was said of them, which loads nothing from anywhere."""

from __future__ import annotations

import base64
import html
import os
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path

from vision_lm.answer import too_unsure
from vision_lm.batch.records import Done
from vision_lm.batch.rows import Table
from vision_lm.errors import BatchError

MARK = '<meta name="generator" content="vision-lm batch">'
TEXT = 2_000  # characters of an answer that are shown


def shown_on_sheet(position: int, pictures: int, most: int) -> bool:
    """Whether a picture is on the sheet: all of them, or `most` of them at even distances."""
    return pictures <= most or (position + 1) * most // pictures > position * most // pictures


def check_sheet(path: Path) -> None:
    """Raise BatchError for a place where something else is."""
    if path.suffix.lower() not in (".html", ".htm"):
        raise BatchError(f"{path}: a contact sheet is an HTML page; give --sheet a file that ends in .html")
    if path.is_dir() or (path.exists() and MARK.encode() not in path.read_bytes()[:2_000]):
        raise BatchError(f"{path}: exists and is no contact sheet; give --sheet another file")
    if path.parent.exists() and not os.access(path.parent, os.W_OK | os.X_OK):
        raise BatchError(f"{path}: cannot be written in this folder; give --sheet a place that can")


def write_sheet(path: Path, rows: Iterable[Done], table: Table, pictures: int, most: int) -> None:
    """A card for each picture that is shown, one after the other: the sheet is never in memory as a whole."""
    shown = min(pictures, most)
    note = "" if shown == pictures else f"; {shown:,} of them are shown here, at even distances"
    before, after = (
        files("vision_lm.batch").joinpath("sheet.html").read_text(encoding="utf-8").split("{cards}")
    )
    title = f"{pictures:,} picture{'s' * (pictures != 1)}{note}"
    partial = path.with_name(path.name + ".partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    with partial.open("w", encoding="utf-8") as file:
        file.write(before.replace("{generator}", MARK).replace("{title}", html.escape(title)))
        for one in rows:
            if shown_on_sheet(one.planned.position, pictures, most):
                file.write(_card(one, table))
        file.write(after)
    partial.replace(path)


def _card(done: Done, table: Table) -> str:
    """What a file name, a question or an answer says is text, and never markup."""
    row, result = table.row(done), done.result
    confidences = [one.confidence for one in result.answers]
    parts = []
    if result.thumbnail:
        source = f"data:image/jpeg;base64,{base64.b64encode(result.thumbnail).decode()}"
        parts.append(f'<img alt="" src="{source}">')
    parts.append(f"<h2>{html.escape(row['image'])}</h2>")
    for name, answer in zip(table.answer_names, result.answers, strict=False):
        parts.append(
            f"<p><b>{html.escape(answer.question or name)}</b> {html.escape(answer.text[:TEXT])} "
            f"<i>{answer.confidence:.0%}{', too little to rely on' if too_unsure(answer.text, answer.unanswerable) else ''}</i></p>"
        )
        if answer.unconfirmed:
            parts.append(f"<p><i>Not confirmed: {html.escape(', '.join(answer.unconfirmed))}</i></p>")
    if result.duplicate_of:
        parts.append(f"<p><i>the same as {html.escape(result.duplicate_of)}</i></p>")
    if result.error:
        parts.append(f'<p class="error">{html.escape(result.error)}</p>')
    seconds = result.open_seconds + result.answer_seconds
    sort = f'data-position="{done.planned.position}" data-confidence="{min(confidences, default=-1):.6f}"'
    return f'<article {sort} data-seconds="{seconds:.6f}">{"".join(parts)}</article>\n'
