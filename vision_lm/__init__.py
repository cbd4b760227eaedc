"""vision-lm: captions of pictures and answers about them. `load()` gives a `VisionLM`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from vision_lm.errors import (
    CheckpointError,
    DataError,
    ImageError,
    RequestError,
    TrainingError,
    VisionLMError,
)

if TYPE_CHECKING:
    import os
    from collections.abc import Collection

    from vision_lm.answer import Answer
    from vision_lm.model import VisionLM

__version__ = "0.1.0"

__all__ = [
    "Answer",
    "CheckpointError",
    "DataError",
    "ImageError",
    "RequestError",
    "TrainingError",
    "VisionLM",
    "VisionLMError",
    "load",
]


def load(
    source: str | os.PathLike[str] = "mini",
    device: str = "auto",
    dtype: str = "auto",
    quantize: Literal["int8", "int4"] | None = None,
    *,
    revision: str | None = None,
    cache_tokens: int | None = None,
    allow_url_hosts: Collection[str] = (),
) -> VisionLM:
    """A model from an embedded checkpoint's name, a folder or a hub id; see `VisionLM` for the rest."""
    from vision_lm.model import VisionLM

    return VisionLM.from_pretrained(
        source,
        device,
        dtype,
        quantize,
        revision=revision,
        cache_tokens=cache_tokens,
        allow_url_hosts=allow_url_hosts,
    )


def __getattr__(name: str) -> Any:
    """The classes that stand on torch, imported when first asked for: `import vision_lm` takes no time."""
    if name == "VisionLM":
        from vision_lm.model import VisionLM

        return VisionLM
    if name == "Answer":
        from vision_lm.answer import Answer

        return Answer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
