"""A checkpoint: a folder of `config.json`, `model.safetensors`, `tokenizer.json`, written whole or not at all.

Tensor names are those of the modules: `encoder.tower.*` (open_clip), `projector.*`, and `phi.*` in the names of
transformers' PhiForCausalLM. Weights are only ever read from safetensors; no code of a checkpoint is ever run.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tokenizers import Tokenizer
from torch import Tensor

from vision_lm.config import Config
from vision_lm.disk_space import check_disk_space
from vision_lm.errors import CheckpointError
from vision_lm.model_files import (
    CONFIG,
    FILES,
    INDEX,
    TENSORS,
    TOKENIZER,
    find_folder,
    read_tensors,
    read_tokenizer,
)
from vision_lm.safetensors_file import write_tensors
from vision_lm.skeleton import build_on_meta, check_tensors, expected_tensors, patch_layout

__all__ = [
    "EMBEDDED",
    "Checkpoint",
    "build_on_meta",
    "checkpoint_folder",
    "expected_tensors",
    "read_checkpoint",
    "write_checkpoint",
    "write_made",
]

EMBEDDED = Path(__file__).parent / "weights"
_SPARE = 16 << 20  # bytes, for config, tokenizer and what a folder's own entries take


@dataclass(frozen=True)
class Checkpoint:
    """Everything a model is made of. The tensors are maps of the file: they take memory as they are read."""

    config: Config
    tensors: dict[str, Tensor]
    tokenizer: Tokenizer

    @cached_property
    def patch_layout(self) -> tuple[int, int]:
        """Patches N of a picture and their width Dv."""
        return patch_layout(self.config.vision)


def read_checkpoint(source: str | os.PathLike[str]) -> Checkpoint:
    """Read and check a checkpoint: an embedded name ("mini"), a local folder, or a hub id ("owner/name", "owner/name@revision").

    One of another project that `vision-lm import` knows is imported first, and the import kept for the next time.
    Raises CheckpointError with one line that names the file, the key or the tensor that is wrong.
    """
    folder = checkpoint_folder(source)
    config, tokenizer = read_config_and_tokenizer(folder)
    checkpoint = Checkpoint(config, read_tensors(folder), tokenizer)
    given, (patches, width) = config.projector, checkpoint.patch_layout
    if given.in_features != width:
        raise CheckpointError(
            f"{folder}: projector.in_features is {given.in_features}, but the patches are {width} wide"
        )
    if given.positions not in (0, patches):
        raise CheckpointError(
            f"{folder}: projector.positions is {given.positions}, but there are {patches} patches"
        )
    check_tensors(checkpoint.tensors, expected_tensors(config), folder)
    return checkpoint


def read_config_and_tokenizer(folder: Path) -> tuple[Config, Tokenizer]:
    """All of a checkpoint but its tensors. Raises CheckpointError."""
    config = Config.load(folder / CONFIG)
    tokenizer = read_tokenizer(folder / TOKENIZER)
    _check_tokenizer(tokenizer, config, folder / TOKENIZER)
    return config, tokenizer


def checkpoint_folder(source: str | os.PathLike[str]) -> Path:
    """Where the files of a checkpoint are, fetched first if need be. Raises CheckpointError."""
    if (embedded := _embedded(os.fspath(source))) is not None:
        return embedded
    name, _, revision = os.fspath(source).rpartition("@")
    if _embedded(name) is not None:
        raise CheckpointError(
            f"{name}: embedded, and only a hub's repository has revisions; leave {revision!r} out"
        )
    from vision_lm.importers.cached import DESCRIPTIONS, imported_folder, is_foreign

    # Whose it is, is known before its weights are fetched: of a family that nobody knows they would be gigabytes for nothing.
    if is_foreign(find_folder(source, DESCRIPTIONS)):
        return imported_folder(source)
    return find_folder(source, FILES)


def _embedded(name: str) -> Path | None:
    """The folder of an embedded checkpoint, whose name wins over that of a folder here (give ./name)."""
    folder = EMBEDDED / name
    return folder if re.fullmatch(r"[\w-]+", name) and folder.is_dir() else None


def write_checkpoint(
    folder: str | os.PathLike[str], config: Config, tensors: Mapping[str, Tensor], tokenizer: Tokenizer
) -> None:
    """Write a checkpoint. A process killed on the way leaves the old one, the new one, or none that loads.

    `tensors` must be exactly those of `expected_tensors(config)`, in any floating type, on any device.
    Raises CheckpointError for what could not be read again, and where the disk has no room for it.
    """
    write_made(folder, config, tensors, tensors.__getitem__, tokenizer)


def write_made(
    folder: str | os.PathLike[str],
    config: Config,
    like: Mapping[str, Tensor],
    make: Callable[[str], Tensor],
    tokenizer: Tokenizer,
) -> None:
    """The same of tensors that are made one by one as they are written; `like` has their shapes and types."""
    folder = Path(folder)
    config.check(str(folder))
    check_tensors(like, expected_tensors(config), folder)
    check_disk_space(str(folder), sum(tensor.nbytes for tensor in like.values()) + _SPARE, folder)
    folder.mkdir(parents=True, exist_ok=True)
    _write(_partial(folder / CONFIG), config.to_json().encode())
    _write(_partial(folder / TOKENIZER), tokenizer.to_str(pretty=True).encode())
    write_tensors(_partial(folder / TENSORS), like, make)
    _flush(_partial(folder / TENSORS))
    changed = [name for name in (CONFIG, TOKENIZER) if not _same(folder / name, _partial(folder / name))]
    if changed:  # old tensors must not load beside a new config, nor the other way round
        (folder / TENSORS).unlink(missing_ok=True)
    (folder / INDEX).unlink(missing_ok=True)
    for name in (CONFIG, TOKENIZER, TENSORS):
        _partial(folder / name).replace(folder / name)


def _check_tokenizer(tokenizer: Tokenizer, config: Config, path: Path) -> None:
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    placeholder, end = config.prompt.image_token_id, config.prompt.eos_token_id
    if largest >= config.text.vocab_size:
        raise CheckpointError(
            f"{path}: token id {largest} is beyond the {config.text.vocab_size} embedding rows"
        )
    if tokenizer.id_to_token(placeholder) is not None:
        raise CheckpointError(
            f"{path}: prompt.image_token_id {placeholder} is the token {tokenizer.id_to_token(placeholder)!r}; "
            "it must be an embedding row that no text encodes to"
        )
    if tokenizer.id_to_token(end) is None:
        raise CheckpointError(f"{path}: prompt.eos_token_id {end} is no token of this tokenizer")


def _partial(path: Path) -> Path:
    return path.with_name(path.name + ".partial")


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    _flush(path)


def _flush(path: Path) -> None:
    """To the disk: a rename that outlives a power cut must not name bytes that did not."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _same(first: Path, second: Path) -> bool:
    return first.is_file() and first.read_bytes() == second.read_bytes()
