"""A model card out of the folder of a training run: what it was trained on, and what was measured of it since."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vision_lm.checkpoint import EMBEDDED
from vision_lm.errors import CheckpointError
from vision_lm.model_card import ModelCard, read_licence
from vision_lm.model_files import CARD

SCORES = "scores.json"  # of `vision-lm eval`


def card_of_run(folder: Path, licence: str = "") -> ModelCard:
    """The card of a checkpoint that `vision-lm train` wrote. Raises CheckpointError for a folder that is no run's.

    Data are the sources of its recipe and the checkpoint that it began with. Figures are those of every `scores.json`
    in the folder and in the folders within it, so `vision-lm eval --out RUN/NAME` puts them there. `licence`: else the
    one that the folder's README.md states; which one the data leave to choose, no file knows.
    """
    return ModelCard(
        licence or read_licence(folder / CARD) or "", tuple(_data(folder)), dict(_metrics(folder))
    )


def _data(folder: Path) -> Iterator[str]:
    import torch

    from projector import run_state

    state = run_state.saved_run(folder)
    if state is None:
        raise CheckpointError(
            f"{folder}: no run of `vision-lm train`; give the folder that a recipe calls 'out'"
        )
    try:
        saved = torch.load(state / run_state.RUN, weights_only=True)
        recipe: Mapping[str, Any] = saved["recipe"]
        start, sources = (
            str(recipe["checkpoint"]),
            [(str(one[0]), float(one[1])) for one in recipe["sources"]],
        )
        samples = saved["step"] * recipe["batch_size"] * recipe["accumulate"] * recipe["number of processes"]
    except (
        OSError,
        EOFError,
        KeyError,
        IndexError,
        TypeError,
        ValueError,
        RuntimeError,
        pickle.UnpicklingError,
    ) as error:
        raise CheckpointError(f"{folder}: its saved state cannot be read ({type(error).__name__})") from None
    whole = sum(weight for _, weight in sources)
    for path, weight in sources:
        yield f"{Path(path).name}: {weight / whole:.0%} of {samples:,} samples"
    theirs = read_licence((EMBEDDED / start if (EMBEDDED / start).is_dir() else Path(start)) / CARD)
    yield f"what {Path(start).name or start} was trained on before" + (f" ({theirs})" if theirs else "")


def _metrics(folder: Path) -> Iterator[tuple[str, str]]:
    for path in sorted({*folder.glob(SCORES), *folder.glob(f"*/{SCORES}")}):
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            part = f"{found['scored']:,} of {found['items']:,} items"
            for name, one in found["scores"].items():
                interval = f"95% interval {one['low']:.4f} to {one['high']:.4f}"
                yield f"{found['task']}, {name}", f"{one['value']:.4f} ({interval}; {part})"
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"{path}: not what `vision-lm eval` writes ({type(error).__name__})"
            ) from None
