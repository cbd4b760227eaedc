"""Is there room for what is about to be fetched or written? Better known now than when the disk is full."""

from __future__ import annotations

import shutil
from pathlib import Path

from vision_lm.errors import CheckpointError, VisionLMError


def check_disk_space(
    what: str,
    needed: int,
    place: Path,
    remedy: str = "choose another folder",
    error: type[VisionLMError] = CheckpointError,
) -> None:
    """Raise `error` where the disk of `place`, a folder that need not exist yet, has fewer than `needed` bytes free.

    `what`: whose bytes they are, for the message; `remedy`: what else to do than to make room.
    """
    there = next(one for one in (place, *place.absolute().parents) if one.is_dir())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise error(f"{what}: needs {needed:,} bytes and {there} has {free:,} free; make room, or {remedy}")
