"""The small run of colour_run.py, and the images that annotation_files.py names, as files in a folder of the test's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.projector.annotation_files import IMAGES
from tests.projector.colour_run import write_data, write_start
from vision_lm.checkpoint import Checkpoint


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_data(tmp_path)


@pytest.fixture
def start(tmp_path: Path, trunk_checkpoint: Checkpoint) -> Path:
    return write_start(tmp_path, trunk_checkpoint)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the images that the annotations name; readers only look whether they are there."""
    for name in IMAGES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"not opened by readers")
    return tmp_path
