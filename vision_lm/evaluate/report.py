"""The HTML report: scores, plots, and pictures of right and wrong answers, in one file that loads nothing."""

from __future__ import annotations

import base64
import html
import io
import json
import math
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

import numpy as np

from vision_lm.errors import ImageError
from vision_lm.evaluate.bootstrap import Score
from vision_lm.evaluate.plots import bars, coverage_curve, reliability
from vision_lm.evaluate.results import Result, Scored, write_whole
from vision_lm.images import open_image

SHOWN = 12  # right answers, and as many wrong ones
THUMBNAIL = 200  # pixels, the longer side
TEXT = 500  # characters of a question or an answer


def write_report(path: Path, result: Result) -> None:
    """What files and models say is text, and never markup."""
    parts = [f"<h1>{html.escape(result.task)}</h1>"]
    if result.partial:
        parts.append(
            f'<p class="partial"><b>Partial</b>: {len(result.seeing.items):,} of {result.total:,} items are scored, '
            f"{len(result.missing):,} of those asked for are missing. These scores compare with no others.</p>"
        )
    parts += [_table(result), *(f"<p>{html.escape(note)}</p>" for note in result.seeing.notes)]
    if result.seeing.by_kind:
        blind = result.blind.by_kind if result.blind else {}
        parts += ["<h2>By kind</h2>", bars(result.seeing.by_kind, blind)]
    parts += [_confidence(result.seeing), _examples(result.seeing)]
    if result.missing:
        listed = "".join(
            f"<li>{html.escape(one)}: {html.escape(why[:TEXT])}</li>"
            for one, why in list(result.missing.items())[:50]
        )
        parts.append(f"<h2>Missing</h2><ul>{listed}</ul>")
    record = {key: value for key, value in result.to_json().items() if key in ("versions", *result.record)}
    parts.append(f"<h2>How this was made</h2><pre>{html.escape(json.dumps(record, indent=1))}</pre>")
    page = files("vision_lm.evaluate").joinpath("report.html").read_text(encoding="utf-8")
    before, after = page.replace("{title}", html.escape(result.task)).split("{body}")
    write_whole(path, before + "\n".join(parts) + after)


def _table(result: Result) -> str:
    blind = {name: f"{one.value:.4f}" for name, one in result.blind.overall.items()} if result.blind else {}
    return _scores_table(result.seeing.overall, blind)


def _scores_table(scores: Mapping[str, Score], blind: Mapping[str, str]) -> str:
    rows = [
        f"<tr><td>{html.escape(name)}<td>{one.value:.4f}<td>{one.low:.4f} to {one.high:.4f}<td>{one.items:,}"
        f"<td>{blind.get(name, '')}"
        for name, one in scores.items()
    ]
    head = "<tr><th>metric<th>score<th>95% interval<th>items<th>" + ("blind" if blind else "")
    return f"<table>{head}{''.join(rows)}</table>"


def _confidence(scored: Scored) -> str:
    """What the confidence is worth: in numbers, as a reliability diagram, and as a risk-coverage curve."""
    if not scored.confidence:
        return ""
    sure = np.array([one.confidence for one in scored.predictions], dtype=float)
    held = scored.confidence.get("unanswerable")
    plots = reliability(sure, scored.right) + coverage_curve(
        sure, scored.right, None if held is None else 1 - held.value
    )
    return f"<h2>How sure, how right</h2>{_scores_table(scored.confidence, {})}{plots}"


def _examples(scored: Scored) -> str:
    """The first right and wrong answers, each picture once."""
    if all(map(math.isnan, scored.right)):
        return f"<h2>Some captions</h2>{_cards(scored, list(range(len(scored.items))))}"
    right = [place for place, value in enumerate(scored.right) if value >= 0.5]
    wrong = [place for place, value in enumerate(scored.right) if value < 0.5]
    return f"<h2>Right</h2>{_cards(scored, right)}<h2>Wrong</h2>{_cards(scored, wrong)}"


def _cards(scored: Scored, places: list[int]) -> str:
    cards: list[str] = []
    met = set()
    for place in places:
        item, said = scored.items[place], scored.predictions[place]
        if item.image in met:
            continue
        met.add(item.image)
        sure = "" if said.confidence is None else f" <i>{said.confidence:.0%}</i>"
        references = " | ".join(dict.fromkeys(item.references))
        asked = " ".join(
            [f"{question} {said}." for question, said in item.before] + [item.question or "caption"]
        )
        cards.append(
            f"<article>{_thumbnail(item.image)}<p><b>{html.escape(asked[:TEXT])}</b></p>"
            f"<p>{html.escape(said.prediction[:TEXT])}{sure}</p>"
            f"<p>wanted: {html.escape(references[:TEXT])}</p></article>"
        )
        if len(cards) == SHOWN:
            break
    return f'<div class="cards">{"".join(cards)}</div>' if cards else "<p>None.</p>"


def _thumbnail(path: Path) -> str:
    try:
        image = open_image(path)
    except ImageError:
        return f"<p><i>{html.escape(path.name)} cannot be opened</i></p>"
    image.thumbnail((THUMBNAIL, THUMBNAIL), reducing_gap=2.0)
    written = io.BytesIO()
    image.save(written, "JPEG", quality=75)
    data = base64.b64encode(written.getvalue()).decode()
    return f'<img alt="{html.escape(path.name)}" src="data:image/jpeg;base64,{data}">'
