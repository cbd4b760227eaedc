"""Where a checkpoint came from: what an import wrote down about its source, or the hub's repository whose files it is."""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass
from pathlib import Path

from vision_lm.errors import CheckpointError

REPORT = "import.json"
_SNAPSHOT = re.compile(r"models--(?P<owner>.+?)--(?P<name>.+)/snapshots/(?P<commit>[0-9a-f]{40})$")


@dataclass(frozen=True)
class Origin:
    """A checkpoint's source. What is None is not known."""

    source: str  # a hub id or a folder, as it was given
    family: str | None = None  # of other projects' checkpoints
    commit: str | None = None  # of the hub's repository
    base: str | None = None  # of LoRA weights: the language model that they were merged into
    licence: str | None = None

    def __str__(self) -> str:
        parts = [self.source]
        if self.commit:
            parts.append(f"commit {self.commit}")
        if self.base:
            parts.append(f"merged into {self.base}")
        if self.family:
            parts.append(f"imported as {self.family}")
        return ", ".join(parts)


def read_origin(folder: Path) -> Origin | None:
    """The origin of a checkpoint in a folder, if it can be told. Raises CheckpointError for a damaged report."""
    path = folder / REPORT
    if not path.is_file():
        return of_snapshot(folder)
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        known = {field.name: raw.get(field.name) for field in dataclasses.fields(Origin)}
        return Origin(**{name: None if one is None else str(one) for name, one in known.items()})  # type: ignore[arg-type]
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); import the checkpoint again") from None


def of_snapshot(folder: Path) -> Origin | None:
    """The repository and the commit of a folder in the cache of the hub's client."""
    found = _SNAPSHOT.search(folder.as_posix())
    return found and Origin(f"{found['owner']}/{found['name']}", commit=found["commit"])
