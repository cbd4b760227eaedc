"""How sure an answer is, as a bar that is also read aloud; and what of it was taken back."""

from __future__ import annotations

import html
from collections.abc import Sequence


def meter(confidence: float, unsure: bool = False) -> str:
    """HTML for a confidence of 0 to 1. `unsure`: it is below what the checkpoint's answers can be relied on with."""
    percent = round(100 * confidence)
    warning = ", too little to rely on" if unsure else ""
    return (
        f'<div class="sure" role="meter" aria-label="Confidence" aria-valuemin="0" aria-valuemax="100" '
        f'aria-valuenow="{percent}" aria-valuetext="{percent} percent{warning}">'
        f'<span class="sure-bar" aria-hidden="true"><span style="width:{percent}%"></span></span>'
        f'<span aria-hidden="true">{percent}% sure{warning}</span></div>'
    )


def taken_back(unconfirmed: Sequence[str]) -> str:
    """HTML: a line with what a checked caption first named, and does not say any more; nothing if there is nothing."""
    names = html.escape(", ".join(unconfirmed))
    return f'<p class="taken-back">Not confirmed: {names}</p>' if names else ""
