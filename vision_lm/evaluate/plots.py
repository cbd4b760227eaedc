"""Plots as inline SVG, in the colours of the page that they stand on."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

import numpy as np

from vision_lm.evaluate.bootstrap import Score
from vision_lm.evaluate.selective import calibration_error, risk_coverage

BINS = 10  # of confidence that are drawn
SIDE, EDGE = 320, 48  # pixels of a square plot, and of the room for its axes


def bars(scores: Mapping[str, Score], blind: Mapping[str, Score]) -> str:
    """A bar for each kind, its 95% interval as a line, and a mark where the blind baseline is."""
    left, width, row = 180, 420, 26
    lines = []
    for place, (kind, one) in enumerate(scores.items()):
        top = place * row + 4
        value, low, high = (left + width * share for share in (one.value, one.low, one.high))
        lines.append(
            f'<text x="{left - 8}" y="{top + 13}" text-anchor="end">{html.escape(kind[:26])}</text>'
            f'<rect x="{left}" y="{top}" width="{value - left:.1f}" height="18" fill="var(--mark)"/>'
            f'<path d="M{low:.1f} {top + 9}H{high:.1f}" stroke="CanvasText" stroke-width="2"/>'
            f'<text x="{left + width + 8}" y="{top + 13}">{one.value:.1%} of {one.items:,}</text>'
        )
        if kind in blind:
            at = left + width * blind[kind].value
            lines.append(f'<path d="M{at:.1f} {top - 2}v22" stroke="CanvasText" stroke-dasharray="3 2"/>')
    caption = "Accuracy by kind, with 95% intervals" + ("; dashed: without the picture" if blind else "")
    height = len(scores) * row + 8
    return _figure(f'<svg viewBox="0 0 720 {height}" width="720" role="img">{"".join(lines)}</svg>', caption)


def reliability(sure: np.ndarray, right: np.ndarray) -> str:
    """How right answers are (M,) against how sure the model was (M,), in bins (Guo et al. 2017, arXiv 1706.04599)."""
    places = np.minimum((sure * BINS).astype(int), BINS - 1)
    counts = np.bincount(places, minlength=BINS)
    lines = [
        f'<path d="M{EDGE} {SIDE}L{EDGE + SIDE} 0" stroke="CanvasText" stroke-dasharray="4 3" fill="none"/>'
    ]
    for place in np.nonzero(counts)[0]:
        true, said = right[places == place].mean(), sure[places == place].mean()
        x, share = EDGE + SIDE * place / BINS, counts[place] / counts.max()
        lines.append(
            f'<rect x="{x + 2:.1f}" y="{SIDE * (1 - true):.1f}" width="{SIDE / BINS - 4:.1f}" '
            f'height="{SIDE * true:.1f}" fill="var(--mark)" opacity="{0.25 + 0.75 * share:.2f}">'
            f"<title>{counts[place]:,} answers: {true:.1%} right, {said:.1%} sure</title></rect>"
        )
    error = calibration_error(sure, right)
    caption = f"Right (up) against sure (across); darker bars hold more answers; expected calibration error {error:.1%}"
    return _square([*lines, *_axes((0, 0.5, 1), (0, 0.5, 1))], caption)


def coverage_curve(sure: np.ndarray, right: np.ndarray, given: float | None) -> str:
    """What share of the answers is wrong when only the surest are given; `given`: the share that the model itself gives."""
    curve = risk_coverage(sure, right)
    top = max(0.05, float(np.ceil(curve.risk.max() * 20) / 20))  # of the upward axis
    some = np.unique(np.linspace(0, len(curve.risk) - 1, 500).astype(int))
    x, y = EDGE + SIDE * curve.coverage[some], SIDE * (1 - curve.risk[some] / top)
    points = " ".join(f"{across:.1f},{down:.1f}" for across, down in zip(x, y, strict=True))
    lines = [f'<polyline points="{points}" fill="none" stroke="var(--mark)" stroke-width="2"/>']
    if given is not None:
        at = EDGE + SIDE * given
        lines.append(f'<path d="M{at:.1f} 0V{SIDE}" stroke="CanvasText" stroke-dasharray="3 2"/>')
    caption = "Wrong (up) of the surest answers, against their share (across)"
    caption += "" if given is None else "; dashed: what the model does not call unanswerable"
    return _square([*lines, *_axes((0, 0.5, 1), (0, top / 2, top))], caption)


def _axes(across: Sequence[float], up: Sequence[float]) -> list[str]:
    """The numbers at the two axes, and the axes."""
    lines = [f'<path d="M{EDGE} 0V{SIDE}H{EDGE + SIDE}" stroke="CanvasText" fill="none"/>']
    for place, share in enumerate(up):
        y = SIDE * (1 - place / (len(up) - 1)) + 10 * place / (len(up) - 1)
        number = f"{share:.0%}" if up[-1] == 1 else f"{share:.1%}"
        lines.append(f'<text x="{EDGE - 6}" y="{y:.0f}" text-anchor="end">{number}</text>')
    for share in across:
        lines.append(
            f'<text x="{EDGE + SIDE * share:.0f}" y="{SIDE + 16}" text-anchor="middle">{share:.0%}</text>'
        )
    return lines


def _square(lines: Sequence[str], caption: str) -> str:
    size = f'viewBox="0 0 {SIDE + 2 * EDGE} {SIDE + 24}" width="{SIDE + 2 * EDGE}"'
    return _figure(f'<svg {size} role="img">{"".join(lines)}</svg>', caption)


def _figure(svg: str, caption: str) -> str:
    return f"<figure>{svg}<figcaption>{html.escape(caption)}</figcaption></figure>"
