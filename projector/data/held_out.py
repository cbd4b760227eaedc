"""Which part of a held-out file a confidence may be fitted on, and which part figures are of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

CALIBRATION_SHARE = 0.25  # the first part of every held-out file
One = TypeVar("One")


def calibration_part(samples: Sequence[One]) -> Sequence[One]:
    """The part that calibration and choices between models may see."""
    return samples[: round(CALIBRATION_SHARE * len(samples))]


def reported_part(samples: Sequence[One]) -> Sequence[One]:
    """The part that they may not."""
    return samples[round(CALIBRATION_SHARE * len(samples)) :]
