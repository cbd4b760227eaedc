"""What `mini` says of held-out scenes and of photographs: a part of benchmarks/mini_quality.py."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import asdict
from pathlib import Path

from projector.caption_truth import caption_truth
from projector.data.corpus import CAPTION_REQUESTS
from projector.data.held_out import reported_part
from projector.data.photographs import Photograph
from projector.data.photographs import photographs as pictured
from projector.data.samples import iter_jsonl
from vision_lm.model import VisionLM

PHOTOGRAPH_QUESTIONS = ("What is this?", "Is there a cat?", "Is there a dog?", "Is there a person?")


def captions(
    vlm: VisionLM, path: Path, names: Collection[str], limit: int, checks: Sequence[bool] = (False, True)
) -> dict[str, dict[str, float]]:
    """What `caption_truth` finds on the part of these pictures that calibration may not see, as written and checked."""
    samples = [s for s in reported_part(list(iter_jsonl(path))) if any(t.kind == "caption" for t in s.turns)]
    return {
        f"{length}, checked" if checked else length: asdict(one)
        for checked in checks
        for length, one in caption_truth(vlm, samples[:limit], names, checked=checked).items()
    }


def photographs(vlm: VisionLM, data: Path) -> dict[str, dict[str, object]]:
    """What is said of the photographs that come with packages, and which captions name what is there."""
    result: dict[str, dict[str, object]] = {}
    for photograph in pictured(data):
        image = photograph.path
        said = {length: str(vlm.caption(image, length=length)) for length in CAPTION_REQUESTS}
        answers = {question: str(vlm.ask(image, question)) for question in PHOTOGRAPH_QUESTIONS}
        named: dict[str, bool] = {length: _names(text, photograph) for length, text in said.items()}
        named["What is this?"] = _names(answers["What is this?"], photograph)
        result[photograph.path.stem] = {
            "said": said,
            "named": named,
            "answers": answers,
            "in_imagenet": photograph.in_imagenet,
        }
    return result


def _names(text: str, photograph: Photograph) -> bool:
    return any(re.search(rf"\b{re.escape(name.lower())}\b", text.lower()) for name in photograph.names)
