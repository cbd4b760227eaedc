"""What `mini` says of held-out scenes and of photographs: a part of benchmarks/mini_quality.py."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path

from PIL import Image

from projector.caption_truth import caption_truth
from projector.data.corpus import CAPTION_REQUESTS
from projector.data.held_out import reported_part
from projector.data.samples import iter_jsonl
from vision_lm.model import VisionLM

# scikit-image's photographs, with the words of which a caption must hold one.
PHOTOGRAPHS = {
    "chelsea": ("cat",),
    "coffee": ("coffee", "espresso", "cup"),
    "rocket": ("rocket", "missile", "shuttle"),
    "astronaut": ("person", "astronaut", "space suit"),
}
PHOTOGRAPH_QUESTIONS = ("What is this?", "Is there a cat?", "Is there a dog?", "Is there a person?")


def captions(vlm: VisionLM, path: Path, names: Collection[str], limit: int) -> dict[str, dict[str, float]]:
    """What `caption_truth` finds on the part of these scenes that calibration may not see, as written and checked."""
    samples = [s for s in reported_part(list(iter_jsonl(path))) if any(t.kind == "caption" for t in s.turns)]
    return {
        f"{length}, checked" if checked else length: asdict(one)
        for checked in (False, True)
        for length, one in caption_truth(vlm, samples[:limit], names, checked=checked).items()
    }


def photographs(vlm: VisionLM) -> dict[str, dict[str, object]]:
    """What is said of scikit-image's photographs, and whether the first caption names what is there."""
    from skimage import data

    result: dict[str, dict[str, object]] = {}
    for name, words in PHOTOGRAPHS.items():
        image = Image.fromarray(getattr(data, name)())
        said = {length: str(vlm.caption(image, length=length)) for length in CAPTION_REQUESTS}
        named = {
            length: any(re.search(rf"\b{word}\b", text.lower()) for word in words)
            for length, text in said.items()
        }
        asked = {question: str(vlm.ask(image, question)) for question in PHOTOGRAPH_QUESTIONS}
        result[name] = {"said": said, "named": named, "answers": asked}
    return result
