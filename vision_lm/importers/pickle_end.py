"""Is a file of torch's all there? A pickle that is cut off fails like a forbidden one, and wants another remedy."""

from __future__ import annotations

import pickletools
import zipfile
from pathlib import Path
from typing import BinaryIO

_PARTS = 5  # pickles before the tensors' bytes in torch's older format: magic, protocol, system, object, keys
_ZIP = b"PK"


def is_whole(path: Path) -> bool:
    """Whether its pickles are complete. They are looked through, and not run."""
    with path.open("rb") as file:
        start = file.read(len(_ZIP))
        if start == _ZIP:
            return zipfile.is_zipfile(path)  # its directory is at the end
        file.seek(0)
        return bool(start) and all(_complete(file) for _ in range(_PARTS))


def _complete(file: BinaryIO) -> bool:
    """Whether a pickle begins here and ends, or the file ends before it."""
    if not file.read(1):
        return True  # a plain pickle has but one
    file.seek(-1, 1)
    try:
        for _ in pickletools.genops(file):
            pass
    except Exception:  # pickletools raises nearly anything for bytes that are no pickle
        return False
    return True
