"""A checkpoint of another project: its config, its tensors, its tokenizer; of its code nothing is fetched or run."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vision_lm.errors import CheckpointError
from vision_lm.importers.pickle_end import is_whole
from vision_lm.importers.torchscript import read_torchscript
from vision_lm.model_files import CARD, CONFIG, find_folder, one_line, read_safetensors

INDEXES = (
    ("model.safetensors", "model.safetensors.index.json"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json"),
)
ADAPTER = "adapter_config.json"  # of LoRA weights
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
NON_LORA = "non_lora_trainables.bin"  # what was trained in full beside LoRA weights
PROJECTOR = "mm_projector.bin"  # all that LLaVA's first stage trains
# No pattern of them matches a Python file.
_DESCRIPTIONS = ("*.json", "tokenizer/*.json", "merges.txt", "tokenizer/merges.txt")
_WEIGHTS = ("vision.pt", "text_model.pt", "*.safetensors", NON_LORA, PROJECTOR)
_PICKLES = ("pytorch_model*.bin", "adapter_model.bin")  # of repositories that have no safetensors
# The very first release of moondream1: two pickles, one of them TorchScript, and the sizes of the language model.
FIRST_SIZES = "text_model_cfg.json"
_FIRST_MOONDREAM = ("vision.pt", "text_model.pt", FIRST_SIZES)


@dataclass(frozen=True)
class Source:
    """A folder with a config.json that is not ours."""

    name: str  # as it was given
    folder: Path
    config: dict[str, Any]
    settings: dict[str, Any] = field(default_factory=dict)  # of its image processor

    @property
    def where(self) -> str:
        return str(self.folder)

    @property
    def title(self) -> str:
        """What the checkpoint is called: its folder's name, or its repository's; a cached one lies in a folder named by commit."""
        if Path(self.name).expanduser().is_dir():
            return self.folder.resolve().name
        return Path(self.name.partition("@")[0]).name

    def get(self, *keys: str) -> Any:
        """A value of the config, by a path of keys. Raises CheckpointError where there is none."""
        value: Any = self.config
        for key in keys:
            if not isinstance(value, dict) or key not in value:
                raise CheckpointError(f"{self.folder / CONFIG}: key {'.'.join(keys)!r} is missing")
            value = value[key]
        return value


def open_source(name: str | os.PathLike[str]) -> Source:
    """A local folder, or a hub repository of which only the descriptions are fetched yet. Raises CheckpointError."""
    folder = find_folder(name, _DESCRIPTIONS)
    if (folder / FIRST_SIZES).is_file():
        sizes = read_json(folder / FIRST_SIZES)
        return Source(os.fspath(name), folder, {"model_type": "moondream1", "phi_config": sizes})
    if not (folder / CONFIG).is_file():
        if (folder / ADAPTER).is_file():
            raise CheckpointError(
                f"{folder}: LoRA weights without the {CONFIG} of the model that they are for; put it beside them, then: "
                f"vision-lm import {os.fspath(name)} --out DIR --base FOLDER_OR_ID"
            )
        raise CheckpointError(f"{folder}: no {CONFIG}; a checkpoint's folder holds one")
    return Source(os.fspath(name), folder, read_json(folder / CONFIG), _image_settings(folder))


def _image_settings(folder: Path) -> dict[str, Any]:
    """What transformers does to a picture; from its version 5 on it stands in the processor's file, beside other things."""
    alone, whole = folder / "preprocessor_config.json", folder / "processor_config.json"
    if alone.is_file():
        return read_json(alone)
    settings = read_json(whole).get("image_processor") if whole.is_file() else None
    return settings if isinstance(settings, dict) else {}


def read_json(path: Path) -> dict[str, Any]:
    """An object from a JSON file. Raises CheckpointError."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({one_line(error)}); fetch it again") from None
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path}: expected an object, found {type(raw).__name__}")
    return raw


def fetch_weights(source: Source) -> None:
    """The weight files of a hub repository; of weights that it has in both ways, the safetensors alone."""
    with suppress(
        CheckpointError
    ):  # of what an earlier version fetched it may be missing, and no network here
        find_folder(source.name, (CARD,))
    find_folder(source.name, _WEIGHTS)
    if not _has_safetensors(source.folder):
        find_folder(source.name, _PICKLES)


def _has_safetensors(folder: Path) -> bool:
    """Whether the weights are read from safetensors: one file, or those that an index names, all of which are needed then."""
    return any((folder / name).is_file() for name in (ADAPTER_WEIGHTS[0], *INDEXES[0]))


def read_weights(source: Source) -> dict[str, Tensor]:
    """Every tensor of the source, mapped and not copied. Raises CheckpointError."""
    tensors: dict[str, Tensor] = {}
    vision, text, sizes = (source.folder / name for name in _FIRST_MOONDREAM)
    if sizes.is_file():
        tensors = {
            f"vision_encoder.model.{name}": tensor for name, tensor in read_torchscript(vision).items()
        }
        return tensors | {f"text_model.{name}": tensor for name, tensor in read_file(text).items()}
    for path in weight_files(source.folder):
        tensors |= read_file(path)
    return tensors


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights: safetensors where there are any, one or as an index names them."""
    for single, index in INDEXES:
        if (folder / single).is_file():
            return [folder / single]
        if (folder / index).is_file():
            return list(_indexed(folder, folder / index))
    shards = sorted(path.name for path in folder.glob("*-of-*"))
    if shards:
        raise CheckpointError(
            f"{folder}: {len(shards)} shards ({shards[0]} ...) and no index; fetch model.safetensors.index.json too"
        )
    if (folder / PROJECTOR).is_file():
        raise CheckpointError(
            f"{folder}: a projector alone ({PROJECTOR}), without its language model and tower, which is not read; give the "
            "checkpoint that was made with it"
        )
    raise CheckpointError(
        f"{folder}: no weights; expected model.safetensors or pytorch_model.bin, or an index and its shards"
    )


def _indexed(folder: Path, index: Path) -> Iterator[Path]:
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise CheckpointError(f"{index}: not an index of tensors (no weight_map)")
    for name in sorted({str(one) for one in names.values()}):
        if Path(name).name != name:  # an index is data: it may not point outside its folder
            raise CheckpointError(f"{index}: {name!r} is not a file name in this folder")
        if not (folder / name).is_file():
            raise CheckpointError(
                f"{folder / name}: no such file, though {index.name} names it; fetch it too"
            )
        yield folder / name


def read_file(path: Path) -> dict[str, Tensor]:
    """The tensors of one file: safetensors, or a pickle of plain tensors. Raises CheckpointError, also for any code."""
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    return state_dict(read_pickle(path), path)


def state_dict(loaded: Any, path: Path) -> dict[str, Tensor]:
    """What a pickle held, if that is a table of tensors. Raises CheckpointError."""
    if not isinstance(loaded, dict) or not all(isinstance(one, Tensor) for one in loaded.values()):
        raise CheckpointError(f"{path}: not a table of tensors; only a state dict is read")
    return loaded


def read_pickle(path: Path) -> Any:
    """What a pickle holds, if it is plain values and tensors. Raises CheckpointError, also for any code."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        # torch's older format cannot be mapped.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # torch tells a forbidden pickle and a broken file apart in its text alone
        detail = one_line(error)[:80]
        if "weights_only" in str(error).lower() and is_whole(path):
            problem = f"a pickle that runs code is refused ({detail}); only plain tensors are read"
        else:
            size = path.stat().st_size
            problem = f"damaged or half-written ({size:,} bytes, {detail}); fetch it again"
        raise CheckpointError(f"{path}: {problem}") from None
