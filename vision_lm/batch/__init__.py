"""Many pictures at once: `run(Settings(...))` answers them all into one file, and goes on where it was stopped."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vision_lm.batch.settings import Settings

if TYPE_CHECKING:
    from vision_lm.batch.summary import Summary
    from vision_lm.model import VisionLM

__all__ = ["Settings", "run"]


def run(settings: Settings, vlm: VisionLM | None = None) -> Summary:
    """Answer every question of the settings about every picture, with `vlm` or the model that the settings name.

    Stopped at any moment, the same call goes on. A picture that cannot be answered has a row with its error.
    Raises VisionLMError, in one line, where the run cannot begin or go on; what was answered is kept.
    """
    from vision_lm.batch.runner import run as run_batch

    return run_batch(settings, vlm)
