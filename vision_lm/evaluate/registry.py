"""The tasks by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vision_lm.errors import EvaluationError

if TYPE_CHECKING:
    from vision_lm.evaluate.settings import TaskFiles
    from vision_lm.evaluate.tasks import Task

PUBLISHED = ("vqav2", "gqa", "textvqa", "pope", "scienceqa", "coco")
OWN = ("easy-vqa", "scenes", "dialogues", "absent", "names", "hands", "photographs", "hallucination")


def read_task(name: str, files: TaskFiles) -> Task:
    """Raises EvaluationError or DataError for files that are missing or do not fit the task."""
    if name in PUBLISHED:
        from vision_lm.evaluate import published

        task: Task = getattr(published, name)(files)
    elif name in OWN:
        try:
            from vision_lm.evaluate import own

            task = getattr(own, name.replace("-", "_"))(files)
        except ModuleNotFoundError as error:
            raise EvaluationError(f"{error.name} is not installed; pip install 'vision-lm[data]'") from error
    else:
        raise EvaluationError(f"task {name!r} is unknown; the tasks are {', '.join(PUBLISHED + OWN)}")
    if not task.items:
        raise EvaluationError(
            f"{', '.join(map(str, task.files))}: no item for task {name}; give the whole file"
        )
    return task
