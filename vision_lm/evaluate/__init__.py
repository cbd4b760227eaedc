"""Published and own tasks, run through the model and scored: `run(Settings(...))` writes a result folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vision_lm.evaluate.settings import Settings

if TYPE_CHECKING:
    from vision_lm.evaluate.results import Result
    from vision_lm.model import VisionLM

__all__ = ["Settings", "run"]


def run(settings: Settings, vlm: VisionLM | None = None) -> Result:
    """Answer every item of the task, with `vlm` or the model that the settings name, score the answers, and write
    `predictions.jsonl`, `scores.json` and `report.html` into the folder `settings.out`.

    Stopped at any moment, the same call goes on. With `settings.predictions` no model is used: that file is scored.
    Raises VisionLMError, in one line, where the run cannot begin or go on; what was answered is kept.
    """
    from vision_lm.evaluate.evaluation import run as run_evaluation

    return run_evaluation(settings, vlm)
