"""The files of a model: in a local folder or on the hub, weights as safetensors and never as pickles."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer
from torch import Tensor

from vision_lm.errors import CheckpointError

CONFIG, TENSORS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"
CARD = "README.md"  # says of a model what it is, and its licence
INDEX = "model.safetensors.index.json"  # names the files of a model that is split into several
# All that is ever fetched of a transformers model or of a checkpoint.
FILES = (CONFIG, TENSORS, TOKENIZER, INDEX, "model-*.safetensors", CARD)
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def find_folder(source: str | os.PathLike[str], files: Sequence[str]) -> Path:
    """A local folder, or the folder of a hub repository of which `files` (names or patterns) are fetched.

    `owner/name@revision` is a branch, a tag or a commit of a repository. Raises CheckpointError.
    """
    name = os.fspath(source)
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise CheckpointError(f"{name}: this is a file; give the folder that holds {', '.join(files[:3])}")
    place, at, wanted = name.rpartition("@")
    if at and place and Path(place).expanduser().exists():
        raise CheckpointError(
            f"{place}: lies here, and only a hub's repository has revisions; leave {wanted!r} out"
        )
    hub_id, _, revision = name.partition("@")
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", hub_id) and (revision or "@" not in name):
        from vision_lm.hub import download

        return download(hub_id, files, revision or None)
    raise CheckpointError(
        f"{name}: no such folder; give a folder or a hub id (owner/name, owner/name@revision)"
    )


def read_tokenizer(path: Path) -> Tokenizer:
    """A fast tokenizer from its `tokenizer.json`. Raises CheckpointError."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; a tokenizer is one {TOKENIZER}")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # all that tokenizers raises
        raise CheckpointError(f"{path}: not a tokenizer ({one_line(error)}); the file is damaged") from error


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a folder's `model.safetensors`, or of the files that its index names.

    Raises CheckpointError.
    """
    tensors: dict[str, Tensor] = {}
    for path in _tensor_files(folder):
        tensors |= read_safetensors(path)
    return tensors


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of one file, mapped and not copied. Raises CheckpointError for a missing or damaged file."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; weights are only read from safetensors") from None
    except (SafetensorError, OSError) as error:
        detail = f"{path.stat().st_size:,} bytes, {one_line(error)}"
        raise CheckpointError(
            f"{path}: damaged or half-written ({detail}); save or fetch it again"
        ) from error


def _tensor_files(folder: Path) -> Iterator[Path]:
    if (folder / TENSORS).is_file():
        yield folder / TENSORS
        return
    if (folder / INDEX).is_file():
        try:
            names = set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise CheckpointError(f"{folder / INDEX}: not an index of tensors ({one_line(error)})") from error
        for name in sorted(map(str, names)):
            if Path(name).name != name:  # an index is data: it may not point outside its folder
                raise CheckpointError(f"{folder / INDEX}: {name!r} is not a file name in this folder")
            yield folder / name
        return
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLES)
    if pickles:
        raise CheckpointError(
            f"{folder}: only {pickles[0]}, a pickle, which can run code and is refused; convert it to {TENSORS}"
        )
    raise CheckpointError(
        f"{folder / TENSORS}: no such file; a folder holds {CONFIG}, {TENSORS}, {TOKENIZER}"
    )


def one_line(error: BaseException) -> str:
    """Another library's error, short enough to stand inside one of ours."""
    return " ".join(str(error).split())[:200] or type(error).__name__
