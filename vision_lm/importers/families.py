"""Which project a checkpoint comes from, and the importer that reads it."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer
from torch import Tensor

from vision_lm.errors import CheckpointError
from vision_lm.importers.imported import Imported
from vision_lm.importers.source import Source


@dataclass(frozen=True)
class Family:
    """The checkpoints of one project: how its config.json names itself, and a start of a tensor's name that only it has."""

    name: str
    module: str  # in vision_lm.importers, with `convert`
    model_types: tuple[str, ...] = ()
    architectures: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()  # of tensors, each the start of one

    def convert(self, source: Source, tensors: Mapping[str, Tensor], tokenizer: Tokenizer) -> Imported:
        """Our config and table for these tensors of theirs. Raises CheckpointError."""
        module: Any = importlib.import_module(f"vision_lm.importers.{self.module}")
        imported: Imported = module.convert(source, tensors, tokenizer)
        return imported


FAMILIES = (
    Family(
        "transformers Llava with a Phi",
        "llava_hf",
        ("llava",),
        ("LlavaForConditionalGeneration",),
        ("multi_modal_projector.linear_1.", "model.multi_modal_projector.linear_1."),
    ),
    Family(
        "TinyLLaVA",
        "tinyllava",
        ("tinyllava",),
        ("TinyLlavaForConditionalGeneration",),
        ("connector._connector.",),
    ),
    Family(
        "TinyLLaVA before its Factory, with a Phi",
        "tinyllava_bench",
        ("tiny_llava_phi",),
        ("TinyLlavaPhiForCausalLM",),
    ),
    Family("Bunny", "bunny", ("bunny-phi",), ("BunnyPhiForCausalLM",)),
    Family("Imp", "imp", ("imp",), ("ImpForCausalLM",)),
    Family(
        "moondream1 and moondream2",
        "moondream",
        ("moondream1",),
        ("Moondream", "HfMoondream"),
        ("vision_encoder.", "model.vision."),
    ),
    Family(
        "LLaVA-Phi and Mipha",
        "llava_phi",
        ("llava_phi", "mipha_phi", "mipha-phi"),
        ("LlavaPhiForCausalLM", "MiphaPhiForCausalLM", "MiphaPhi15ForCausalLM"),
        ("model.vision_tower.vision_model.",),
    ),
)


def find_family(source: Source, names: Iterable[str]) -> Family:
    """The family by config.json, or else by the tensors' names. Raises CheckpointError with what was seen."""
    kind, classes = source.config.get("model_type"), source.config.get("architectures") or ()
    for family in FAMILIES:
        if kind in family.model_types or set(classes) & set(family.architectures):
            return family
    names = sorted(names)
    for family in FAMILIES:
        if any(name.startswith(family.keys) for name in names):
            return family
    known = "; ".join(family.name for family in FAMILIES)
    shown = ", ".join(names[:3] + names[-2:] if len(names) > 5 else names) or "none"
    raise CheckpointError(
        f"{source.name}: of no known family (model_type {kind!r}, architectures {list(classes)}, tensors {shown}); "
        f"known are: {known}"
    )
