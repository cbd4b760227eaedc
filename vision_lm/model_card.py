"""A model card: the README.md of a checkpoint's repository, its facts filled in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vision_lm.checkpoint import Checkpoint
from vision_lm.errors import CheckpointError

_TOWERS = {"open_clip": "CLIP", "siglip": "SigLIP", "eva": "EVA-CLIP"}
_BODY = """\
---
{front}---

# {name}

{name} captions pictures and answers questions about them: {tower}, a projector ({projector}) and a Phi of {layers}
layers, {width} wide. {parameters:,} parameters in {dtype}; {tokens} tokens a picture, {context:,} tokens of context.

```python
import vision_lm

vlm = vision_lm.load("{name}")  # this repository's id, or a folder
print(vlm.ask("photo.jpg", "What is this?"))
```

## Data

{data}

## Figures

{figures}

## Licence

{licence}
"""


@dataclass(frozen=True)
class ModelCard:
    """What a checkpoint's own files do not say."""

    licence: str = ""  # an identifier of the hub's: apache-2.0, mit, cc-by-4.0, ...
    data: tuple[str, ...] = ()  # what it was trained on, an item each
    metrics: Mapping[str, str] = field(
        default_factory=dict
    )  # "VQAv2 accuracy" -> "77.5 (dev, 1,000 questions)"


def write_card(checkpoint: Checkpoint, card: ModelCard) -> str:
    """The text of README.md. What is not known is said to be so, and not guessed."""
    config = checkpoint.config
    front: dict[str, Any] = {"library_name": "vision-lm", "pipeline_tag": "image-text-to-text"}
    if card.licence:
        front["license"] = card.licence
    patches, _ = checkpoint.patch_layout
    return _BODY.format(
        front="".join(f"{key}: {json.dumps(value)}\n" for key, value in front.items()),
        name=config.name,
        tower=config.vision.tower.get("timm_model_name") or f"a {_TOWERS[config.vision.kind]} image tower",
        projector="trained" if config.projector_trained else "UNTRAINED: what it says of a picture is noise",
        layers=config.text.num_hidden_layers,
        width=config.text.hidden_size,
        parameters=sum(tensor.numel() for tensor in checkpoint.tensors.values()),
        dtype=config.dtype,
        tokens=patches + config.pooled_tokens,
        context=config.text.max_position_embeddings,
        data="\n".join(f"- {item}" for item in card.data) or "Not stated.",
        figures="\n".join(f"- {name}: {value}" for name, value in card.metrics.items()) or "None measured.",
        licence=card.licence or "Not stated.",
    )


def read_licence(path: Path) -> str | None:
    """The licence that a card states between its first two lines of dashes. Raises CheckpointError."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from None
    if lines[:1] != ["---"]:
        return None
    stated: dict[str, str] = {}
    for line in lines[1:]:
        if line == "---":
            break
        key, _, value = line.partition(":")
        stated[key] = value.strip().strip("\"'")
    licence = stated.get("license") or None
    return stated.get("license_name") or licence if licence == "other" else licence
