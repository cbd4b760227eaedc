"""Plots as inline SVG, in the colours of the page that they stand on."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

from vision_lm.evaluate.bootstrap import Score

BINS = 10  # of confidence
SIDE, EDGE = 320, 40  # pixels of the reliability diagram, and of the room for its axes


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


def reliability(pairs: Sequence[tuple[float, float]]) -> str:
    """How right answers are against how sure the model was, in ten bins (Guo et al. 2017, arXiv 1706.04599)."""
    bins: list[list[tuple[float, float]]] = [[] for _ in range(BINS)]
    for sure, right in pairs:
        bins[min(int(sure * BINS), BINS - 1)].append((sure, right))
    most = max(map(len, bins))
    error = 0.0
    lines = [
        f'<path d="M{EDGE} {SIDE}L{EDGE + SIDE} 0" stroke="CanvasText" stroke-dasharray="4 3" fill="none"/>'
    ]
    for place, one in enumerate(bins):
        if not one:
            continue
        right, sure = sum(pair[1] for pair in one) / len(one), sum(pair[0] for pair in one) / len(one)
        error += abs(right - sure) * len(one) / len(pairs)
        x, share = EDGE + SIDE * place / BINS, len(one) / most
        lines.append(
            f'<rect x="{x + 2:.1f}" y="{SIDE * (1 - right):.1f}" width="{SIDE / BINS - 4:.1f}" '
            f'height="{SIDE * right:.1f}" fill="var(--mark)" opacity="{0.25 + 0.75 * share:.2f}">'
            f"<title>{len(one):,} answers: {right:.1%} right, {sure:.1%} sure</title></rect>"
        )
    for share in (0, 0.5, 1):
        lines.append(
            f'<text x="{EDGE - 6}" y="{SIDE * (1 - share) + 10 * share:.0f}" text-anchor="end">{share:.0%}</text>'
            f'<text x="{EDGE + SIDE * share:.0f}" y="{SIDE + 16}" text-anchor="middle">{share:.0%}</text>'
        )
    caption = f"Right (up) against sure (across); darker bars hold more answers; expected calibration error {error:.1%}"
    size = f'viewBox="0 0 {SIDE + 2 * EDGE} {SIDE + 24}" width="{SIDE + 2 * EDGE}"'
    return _figure(f'<svg {size} role="img">{"".join(lines)}</svg>', caption)


def _figure(svg: str, caption: str) -> str:
    return f"<figure>{svg}<figcaption>{html.escape(caption)}</figcaption></figure>"
