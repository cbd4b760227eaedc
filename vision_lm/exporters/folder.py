"""The folder that an export is written to: a new one, whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from vision_lm.disk_space import check_disk_space
from vision_lm.errors import ExportError

_SPARE = 64 << 20  # bytes, for all that is no tensor


@contextmanager
def new_folder(out: Path, tensors: Mapping[str, Tensor]) -> Iterator[Path]:
    """A folder beside `out` to write to, which becomes `out` at the end. Raises ExportError."""
    if out.exists():
        raise ExportError(f"{out}: exists already; choose another folder or remove this one")
    needed = sum(tensor.nbytes for tensor in tensors.values()) + _SPARE
    check_disk_space(str(out), needed, out.parent, error=ExportError)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
    partial.mkdir()
    try:
        yield partial
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
