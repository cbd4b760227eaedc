"""How sure an answer is, as a bar that is also read aloud."""

from __future__ import annotations


def meter(confidence: float) -> str:
    """HTML for a confidence of 0 to 1."""
    percent = round(100 * confidence)
    return (
        f'<div class="sure" role="meter" aria-label="Confidence" aria-valuemin="0" aria-valuemax="100" '
        f'aria-valuenow="{percent}" aria-valuetext="{percent} percent">'
        f'<span class="sure-bar" aria-hidden="true"><span style="width:{percent}%"></span></span>'
        f'<span aria-hidden="true">{percent}% sure</span></div>'
    )
