"""`vision-lm import`: another project's checkpoint, read, renamed and written as ours."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from vision_lm.checkpoint import write_made
from vision_lm.errors import CheckpointError
from vision_lm.importers.families import find_family
from vision_lm.importers.imported import Imported
from vision_lm.importers.lora import lora_tensors, open_base
from vision_lm.importers.share import Share
from vision_lm.importers.source import ADAPTER, Source, fetch_weights, open_source, read_weights
from vision_lm.importers.tensor_table import check_all_used, make
from vision_lm.importers.tokenizer_files import find_tokenizer, has_tokenizer
from vision_lm.importers.tower_files import with_tower
from vision_lm.model_card import read_licence
from vision_lm.model_files import CARD, CONFIG
from vision_lm.origin import REPORT, Origin, of_snapshot
from vision_lm.skeleton import check_tensors, expected_tensors


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
    beneath = None
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
    ours = check(imported, opened)
    size = sum(tensor.nbytes for tensor in ours.values())
    progress(f"{out}: writing {imported.config.name}, {size / 1e9:,.1f} GB")

    report = Share(size, lambda done: progress(f"{out}: {done}"))

    def made(name: str) -> Tensor:
        report.add(ours[name].nbytes)
        return make(name, imported.table, imported.tensors, opened.where)

    write_made(out, imported.config, ours, made, imported.tokenizer)
    origin = Origin(
        opened.name,
        family.name,
        (of_snapshot(opened.folder) or Origin("")).commit,
        None if beneath is None else str(of_snapshot(beneath.folder) or beneath.name),
        read_licence(opened.folder / CARD),
    )
    (out / REPORT).write_text(json.dumps(_report(imported, origin), indent=1) + "\n", encoding="utf-8")
    return imported


def open_whole(source: str | os.PathLike[str]) -> Source:
    """A source with its weights. Of an unknown family on the hub they are not fetched. Raises CheckpointError."""
    opened = open_source(source)
    if not Path(opened.name).expanduser().is_dir():
        find_family(opened, ())  # by its config alone
        fetch_weights(opened)
    return opened


def check(imported: Imported, source: Source) -> dict[str, Tensor]:
    """Every tensor of theirs has a use, every one of ours a source: ours, without their values. Raises CheckpointError."""
    imported.config.check(source.where)
    check_all_used(imported.table, imported.tensors, imported.unused, source.where)
    theirs = {name: tensor.to("meta") for name, tensor in imported.tensors.items()}
    ours = {name: make(name, imported.table, theirs, source.where) for name in imported.table}
    check_tensors(ours, expected_tensors(imported.config), Path(source.where))
    return ours


def _report(imported: Imported, origin: Origin) -> dict[str, Any]:
    used = {
        ours: {"from": list(one.names), **({"as": one.what} if one.what else {})}
        for ours, one in imported.table.items()
    }
    taken = {name for one in imported.table.values() for name in one.names}
    return dataclasses.asdict(origin) | {
        "tensors": used,
        "unused": sorted(set(imported.tensors) - taken),
        "config": dataclasses.asdict(imported.config.prompt),
    }
