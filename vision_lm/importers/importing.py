"""`vision-lm import`: another project's checkpoint, read, renamed and written as ours."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from vision_lm.checkpoint import write_checkpoint
from vision_lm.errors import CheckpointError
from vision_lm.importers.families import find_family
from vision_lm.importers.imported import Imported
from vision_lm.importers.lora import ADAPTER, lora_tensors, open_base
from vision_lm.importers.source import Source, fetch_weights, open_source, read_weights
from vision_lm.importers.tensor_table import apply, check_all_used
from vision_lm.importers.tokenizer_files import find_tokenizer, has_tokenizer
from vision_lm.importers.tower_files import with_tower
from vision_lm.model_files import CONFIG
from vision_lm.skeleton import check_tensors, expected_tensors

REPORT = "import.json"


def import_checkpoint(
    source: str | os.PathLike[str],
    out: Path,
    *,
    base: str | None = None,
    tower: str | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> Imported:
    """Write a checkpoint of a known family in our own layout, with a report of every tensor beside it.

    `source`: a folder or a hub id. Nothing of it is ever run. `base`, `tower`: where weights go without their language
    model or tower, the folders or hub ids of these, if not those that the files name. Raises CheckpointError.
    """
    if (out / CONFIG).exists():
        raise CheckpointError(f"{out}: holds a checkpoint already; choose another folder or remove this one")
    opened = open_whole(source)
    theirs: Mapping[str, Tensor]
    words = opened.folder  # of the tokenizer
    if (opened.folder / ADAPTER).is_file():
        beneath = open_base(opened, base)
        theirs = lora_tensors(opened, beneath, tower)
        words = words if has_tokenizer(words) else beneath.folder
    else:
        theirs = read_weights(opened)
    family = find_family(opened, theirs)
    theirs = with_tower(opened, theirs, tower)
    progress(f"{opened.name}: {family.name}, {len(theirs):,} tensors")
    imported = family.convert(opened, theirs, find_tokenizer(words))
    check(imported, opened)
    _check_space(out, theirs)
    size = sum(tensor.numel() * tensor.element_size() for tensor in theirs.values())
    progress(f"{out}: writing {imported.config.name}, about {size / 1e9:,.1f} GB")
    ours: dict[str, Tensor] = dict(apply(imported.table, imported.tensors, opened.where))
    write_checkpoint(out, imported.config, ours, imported.tokenizer)
    (out / REPORT).write_text(
        json.dumps(_report(imported, opened, family.name), indent=1) + "\n", encoding="utf-8"
    )
    return imported


def open_whole(source: str | os.PathLike[str]) -> Source:
    """A source with its weights. Of an unknown family on the hub they are not fetched. Raises CheckpointError."""
    opened = open_source(source)
    if not Path(opened.name).expanduser().is_dir():
        find_family(opened, ())  # by its config alone
        fetch_weights(opened)
    return opened


def check(imported: Imported, source: Source) -> None:
    """Every tensor of theirs has a use, every one of ours a source. Raises CheckpointError."""
    imported.config.check(source.where)
    check_all_used(imported.table, imported.tensors, imported.unused, source.where)
    expected = expected_tensors(imported.config)
    made = dict(apply(imported.table, _on_meta(imported.tensors), source.where))
    check_tensors(made, expected, Path(source.where))


def _on_meta(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.to("meta") for name, tensor in tensors.items()}


def _check_space(out: Path, tensors: Mapping[str, Tensor]) -> None:
    """Better known now than after half of it is written."""
    needed = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    place = next(one for one in (out, *out.absolute().parents) if one.is_dir())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise CheckpointError(
            f"{out}: needs {needed:,} bytes and {place} has {free:,}; free some, or choose another folder"
        )


def _report(imported: Imported, source: Source, family: str) -> dict[str, Any]:
    used = {
        ours: {"from": list(one.names), **({"as": one.what} if one.what else {})}
        for ours, one in imported.table.items()
    }
    taken = {name for one in imported.table.values() for name in one.names}
    return {
        "source": source.name,
        "family": family,
        "tensors": used,
        "unused": sorted(set(imported.tensors) - taken),
        "config": dataclasses.asdict(imported.config.prompt),
    }
