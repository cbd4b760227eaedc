"""The small run of colour_run.py, as files in a folder of the test's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.projector.colour_run import write_data, write_start
from vision_lm.checkpoint import Checkpoint


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_data(tmp_path)


@pytest.fixture
def start(tmp_path: Path, trunk_checkpoint: Checkpoint) -> Path:
    return write_start(tmp_path, trunk_checkpoint)
