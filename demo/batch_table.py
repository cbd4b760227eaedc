"""The answers about many pictures as a table that sorts by any column, with the keyboard too."""

from __future__ import annotations

import html
from collections.abc import Sequence

from demo.batch import Progress, Row
from demo.meter import meter, taken_back
from vision_lm.answer import too_unsure

# A heading's button sorts by its column, and the other way round the next time. Rows that come later are put in their
# place. `element` and `watch` are Gradio's.
ON_LOAD = """
let column = null, descending = false;
const key = (row) => row.children[column].dataset.sort;
const compare = (a, b) => {
  const [x, y] = [key(a), key(b)];
  const numbers = element.querySelectorAll("th")[column].dataset.kind === "number";
  return (numbers ? Number(x) - Number(y) : x.localeCompare(y, undefined, {numeric: true})) * (descending ? -1 : 1);
};
const sort = () => {
  if (column === null) return;
  element.querySelectorAll("th").forEach((head, index) => {
    if (index === column) head.setAttribute("aria-sort", descending ? "descending" : "ascending");
    else head.removeAttribute("aria-sort");
  });
  const body = element.querySelector("tbody");
  if (body) body.append(...[...body.children].sort(compare));
};
element.addEventListener("click", (event) => {
  const button = event.target.closest("th button");
  if (!button) return;
  const clicked = [...element.querySelectorAll("th")].indexOf(button.closest("th"));
  descending = clicked === column && !descending;
  column = clicked;
  sort();
});
watch("value", sort);
"""


def table(rows: Sequence[Row]) -> str:
    """HTML, in the order of the files."""
    if not rows:
        return ""
    heads = "".join(
        f'<th scope="col" data-kind="{kind}"><button type="button">{name}</button></th>'
        for name, kind in (("File", "text"), ("Answer", "text"), ("Confidence", "number"))
    )
    return (
        '<div class="scroll" role="region" aria-label="Answers" tabindex="0"><table class="answers">'
        '<caption class="unseen">One row for each picture; a heading sorts by its column.</caption>'
        f'<thead><tr><th scope="col"><span class="unseen">Picture</span></th>{heads}</tr></thead>'
        f"<tbody>{''.join(map(_row, rows))}</tbody></table></div>"
    )


def progress(now: Progress, *, running: bool) -> str:
    """HTML: a bar, and the same in words, which a live region reads aloud at the end and not at every step."""
    done, failed = len(now.rows), sum(bool(row.error) for row in now.rows)
    words = f"{done:,} of {now.total:,} pictures"
    if failed:
        words += f", {failed:,} of them could not be answered"
    if not running:
        words += ": done" if done == now.total else ": stopped"
    silent = ' aria-hidden="true"' if running else ""
    return (
        f'<div class="progress"><progress aria-label="Pictures" max="{now.total}" value="{done}"></progress>'
        f"<p{silent}>{words}.</p></div>"
    )


def _row(row: Row) -> str:
    name = html.escape(row.image)
    picture = f'<img src="{row.thumbnail}" alt="">' if row.thumbnail else ""
    text, sure = (html.escape(row.reply.text), row.reply.confidence) if row.reply else ("", None)
    bar = (
        meter(sure, too_unsure(row.reply.text, row.reply.unanswerable))
        if row.reply and sure is not None
        else ""
    )
    answer = f'<span class="wrong">{html.escape(row.error)}</span>'
    if row.reply:
        answer = text + taken_back(row.reply.unconfirmed)
    return (
        f'<tr><td>{picture}</td><td data-sort="{name}">{name}</td><td data-sort="{text}">{answer}</td>'
        f'<td data-sort="{-1 if sure is None else sure}">{bar}</td></tr>'
    )
