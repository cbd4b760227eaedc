"""`vision-lm export`: read, write, verify, report."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from vision_lm.checkpoint import Checkpoint, read_checkpoint
from vision_lm.errors import ExportError
from vision_lm.exporters.verify import Report, compare

Target = Literal["hf-llava", "gguf", "onnx", "openvino"]
TARGETS: tuple[Target, ...] = ("hf-llava", "gguf", "onnx", "openvino")
AGREEMENT = 0.95  # of answers; near-ties may fall either way where sums are rounded otherwise


@dataclass(frozen=True)
class Settings:
    """How to export."""

    target: Target
    out: Path
    agreement: float = AGREEMENT  # the share of equal answers with which the export passes
    keep_head_bias: bool = False  # hf-llava: leave lm_head.bias where it is, for engines that read it
    language_only: bool = False  # gguf: the language model without its eyes


def check_target(name: str) -> Target:
    """One of TARGETS. Raises ExportError."""
    for target in TARGETS:
        if target == name:
            return target
    raise ExportError(f"--to {name}: allowed: {', '.join(TARGETS)}")


def export(source: str | os.PathLike[str], settings: Settings) -> Report:
    """Write a checkpoint in another engine's layout and hold that engine's answers against ours.

    Raises CheckpointError, and ExportError for what the engine cannot carry; nothing is written then.
    """
    if not 0 <= settings.agreement <= 1:
        raise ExportError(f"agreement is {settings.agreement}, allowed: a share, 0 to 1")
    checkpoint = read_checkpoint(source)
    try:
        if checkpoint.config.text.attention != "causal":
            raise ExportError(
                f"{checkpoint.config.text.attention} attention over a picture's tokens, which Phi's is not there"
            )
        report = WRITERS[settings.target](checkpoint, settings)
    except ExportError as error:
        if str(error).startswith(str(settings.out)):
            raise
        raise ExportError(f"{os.fspath(source)}: {settings.target} cannot carry it: it has {error}") from None
    report.save(settings.out)
    return report


def _hf_llava(checkpoint: Checkpoint, settings: Settings) -> Report:
    from vision_lm.exporters.hf_llava import write_hf_llava
    from vision_lm.exporters.transformers_runtime import TransformersLlava
    from vision_lm.model import VisionLM

    notes = write_hf_llava(checkpoint, settings.out, keep_head_bias=settings.keep_head_bias)
    vlm = VisionLM(checkpoint, "cpu", "float32")
    runtime = TransformersLlava(settings.out, vlm.encoder, restore_head_bias=settings.keep_head_bias)
    return compare(vlm, runtime, settings.target, notes, settings.agreement)


def _gguf(checkpoint: Checkpoint, settings: Settings) -> Report:
    from vision_lm.exporters.gguf_files import write_gguf

    written = write_gguf(checkpoint, settings.out, language_only=settings.language_only)
    if find_spec("xllamacpp") is None:
        return replace(written, notes=(*written.notes, "answers were not compared: llama.cpp is not called"))
    if not written.passed:
        return written
    from vision_lm.exporters.llama_cpp_runtime import llama_cpp
    from vision_lm.model import VisionLM

    vlm = VisionLM(checkpoint, "cpu", "float32")
    notes = (*written.notes, written.verified_with)
    pictures = not settings.language_only
    with llama_cpp(settings.out, vlm.config.prompt.image_token_id, vlm.prompts.tokens_per_image) as runtime:
        return compare(vlm, runtime, settings.target, notes, settings.agreement, pictures=pictures)


def _graphs(checkpoint: Checkpoint, settings: Settings) -> Report:
    from vision_lm.exporters.graph_runtime import GraphRuntime
    from vision_lm.exporters.onnx_files import check_files, write_graphs
    from vision_lm.model import VisionLM

    target: Literal["onnx", "openvino"] = "openvino" if settings.target == "openvino" else "onnx"
    notes = write_graphs(checkpoint, settings.out, target)
    if target == "onnx" and find_spec("onnxruntime") is None:
        return check_files(settings.out, notes)
    vlm = VisionLM(checkpoint, "cpu", "float32")
    return compare(vlm, GraphRuntime(settings.out), target, notes, settings.agreement)


WRITERS: dict[Target, Callable[[Checkpoint, Settings], Report]] = {
    "hf-llava": _hf_llava,
    "gguf": _gguf,
    "onnx": _graphs,
    "openvino": _graphs,
}
