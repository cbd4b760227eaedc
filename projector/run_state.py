"""The folder from which a run is resumed. Wherever a process is killed, a whole state is left, and is found again."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch

STATE = "state"
FRESH, OLD = "state.new", "state.old"  # while one state takes another's place
RUN = "run.pt"  # written last: a folder that holds it is whole


def saved_run(out: Path) -> Path | None:
    """The newest whole state of the run in `out`, under whichever name it was left."""
    return next((out / name for name in (STATE, FRESH) if (out / name / RUN).is_file()), None)


def settle(out: Path) -> None:
    """Give the newest whole state its proper name."""
    found = saved_run(out)
    if found is None or found.name == STATE:
        return
    shutil.rmtree(out / STATE, ignore_errors=True)  # not whole, or it would have been found
    found.rename(out / STATE)


def begin(out: Path) -> Path:
    """An empty folder to write a new state into; `finish` makes it the state."""
    for name in (FRESH, OLD):  # left by a kill
        shutil.rmtree(out / name, ignore_errors=True)
    (out / FRESH).mkdir(parents=True)
    return out / FRESH


def finish(out: Path, run: dict[str, Any]) -> None:
    """Add what the run is and how far it has come, then put the new state in the old one's place.

    Renamed away first, deleted last: what is half deleted is never taken for a state.
    """
    partial = out / FRESH / f"{RUN}.partial"
    torch.save(run, partial)
    os.replace(partial, out / FRESH / RUN)
    if (out / STATE).exists():
        (out / STATE).rename(out / OLD)
    (out / FRESH).rename(out / STATE)
    shutil.rmtree(out / OLD, ignore_errors=True)


def load(out: Path) -> dict[str, Any]:
    """What `finish` was given."""
    return torch.load(out / STATE / RUN, weights_only=True)
