"""Which release of moondream a checkpoint is, and what its files do not say: prompt, activation, parts, attention.

Every fact is from the history of github.com/vikhyat/moondream, at the commits that name each release (96cc1e1 to
211cc2f for 2024, 8ac77eb, f74a121 and f660ccb for 2025). Where two releases have the same files and differ in
what their code does, the date in the name decides: a folder's, or a hub id's revision.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from torch import Tensor

from vision_lm.config import Crops
from vision_lm.errors import CheckpointError
from vision_lm.importers.source import Source

TAGGED = "<image>{image}</image>"  # plain text, several tokens each


@dataclass(frozen=True)
class Release:
    """What one release's code does with weights that others have too."""

    question: str = "{images}\n\nQuestion: {question}\n\nAnswer:"
    answer: str = " {answer}"
    image: str = "{image}"
    stop: tuple[str, ...] = ()
    # The tower was timm's until 2024-03-25. Its own has GELU by the tanh approximation and LayerNorms of 1e-5.
    timm: bool = False
    crops: Crops | None = None
    interpolation: Literal["bicubic", "lanczos"] = "bicubic"


JANUARY = Release(image=TAGGED, stop=("<END>",), timm=True)
# The prompt ends with a blank, a token of its own.
FEBRUARY = Release("{images}\n\nQuestion: {question}\n\nAnswer: ", "{answer}", TAGGED, ("<END>",), timm=True)
APRIL = Release()
MAY = Release(crops=Crops("grid", smallest=512))
_MARCH_2025 = Release(crops=Crops("overlap", most=12, margin=4), interpolation="lanczos")
_JANUARY_2025 = replace(_MARCH_2025, question="{images}\n\nQuestion:{question}\n\nAnswer:")  # without a blank
TORCH = {"2025-01-09": _JANUARY_2025, "2025-03-27": _MARCH_2025, "2025-04-14": _MARCH_2025}
_MSFT = {"2024-03-04": FEBRUARY}  # moondream1's of February too
_SPRING = {"2024-03-05": FEBRUARY, "2024-03-06": FEBRUARY, "2024-04-02": APRIL}
_RENAMED = {"2024-05-08": APRIL}
_PARTS = {"2024-05-20": MAY, "2024-07-23": MAY, "2024-08-26": MAY}
# 2024-03-13 is known and not read: the tags around the picture went 24 minutes after it, and which of both the hub's
# files do was not to be found.
_KNOWN = TORCH | _MSFT | _SPRING | _RENAMED | _PARTS


def find_release(source: Source, tensors: Mapping[str, Tensor]) -> Release:
    """By tensors, config and, where these leave a choice, the date in the name. Raises CheckpointError."""
    if "model.vision.pos_emb" in tensors:
        return _by_date(TORCH, source, "its tensors are named model.vision.* and model.text.*")
    if "vision_encoder.model.projection.mlp1.fc1.weight" in tensors:
        return JANUARY
    first = tensors.get("vision_encoder.projection.mlp.fc1.weight")
    norm = tensors.get("vision_encoder.encoder.model.visual.norm.weight")
    if first is None or norm is None:
        shown = ", ".join(sorted(tensors)[:3])
        raise CheckpointError(f"{source.where}: of no known release of moondream (tensors {shown} ...)")
    width, views = norm.shape[0], first.shape[1] / norm.shape[0]
    if views == 2:
        return _by_layout(_PARTS, source, "its projector reads two views")
    if views != 1:
        raise CheckpointError(
            f"{source.where}: the projector reads {first.shape[1]} features of a tower {width} wide; "
            "of no known release of moondream, which read one view or two"
        )
    if "text_config" in source.config:
        return _by_layout(_RENAMED, source, "its config has text_config, and its projector reads one view")
    if (source.config.get("phi_config") or {}).get("model_type") == "phi":
        return _by_date(_SPRING, source, "its config has a phi_config of transformers' kind")
    return _by_layout(_MSFT, source, "its config has Phi's first words, or none")


def _by_layout(releases: Mapping[str, Release], source: Source, seen: str) -> Release:
    """All of these do the same. Raises CheckpointError where the name says that it is another."""
    date = _date(source)
    if date in _KNOWN and date not in releases:
        raise CheckpointError(f"{source.name}: named {date}, but {seen}, as in {' and '.join(releases)}")
    return next(iter(releases.values()))


def _by_date(releases: Mapping[str, Release], source: Source, seen: str) -> Release:
    date = _date(source)
    if date in releases:
        return releases[date]
    found = f"the name says {date}" if date else "the name has no date"
    raise CheckpointError(
        f"{source.name}: {seen}, which several releases of moondream2 share that are prompted or computed differently, and "
        f"{found}; known are {', '.join(releases)}: name it so (vikhyatk/moondream2@{next(iter(releases))}, or a folder "
        "whose name ends with the date)"
    )


def _date(source: Source) -> str:
    """The date in a revision or in a folder's own name; "" where there is none."""
    last = source.name.partition("@")[2] or Path(source.name).expanduser().absolute().name
    found = re.findall(r"20\d\d-\d\d-\d\d", last)
    return found[-1] if found else ""
