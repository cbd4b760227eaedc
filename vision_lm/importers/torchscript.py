"""The tensors of a TorchScript file, read without running it: its code is never looked at, its pickle may only hold data.

A TorchScript file is a zip archive: `data.pkl` describes a tree of modules, `data/N` are the bytes of its tensors. The
modules' classes are known to TorchScript alone (`__torch__.…`); here they are plain holders of what they were saved with.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vision_lm.errors import CheckpointError
from vision_lm.model_files import one_line

_DTYPES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "BoolStorage": torch.bool,
}


class _Module:
    """Whatever module it was; its attributes are data."""

    attributes: dict[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        self.attributes = state if isinstance(state, dict) else {}


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """Every tensor under the name that its module gives it. Raises CheckpointError, also for a pickle that runs code."""
    try:
        with zipfile.ZipFile(path) as archive:
            (description,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
            folder = description.removesuffix("data.pkl")
            root = _Data(io.BytesIO(archive.read(description)), archive, folder).load()
    except _Forbidden as error:
        raise CheckpointError(
            f"{path}: a pickle that runs code is refused ({error}); only data is read"
        ) from None
    except Exception as error:  # a broken archive or pickle raises nearly anything
        raise CheckpointError(f"{path}: not a TorchScript file ({one_line(error)}); it is damaged") from error
    return dict(_tensors(root, ""))


class _Forbidden(Exception):
    """A name in the pickle that is no data."""


class _Data(pickle.Unpickler):
    """Modules as holders, tensors from the archive, and nothing else."""

    def __init__(self, file: io.BytesIO, archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(file)
        self._archive, self._folder = archive, folder

    def find_class(self, module: str, name: str) -> Any:
        if module == "__torch__" or module.startswith("__torch__."):
            return _Module
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuilt
        if module == "torch.jit._pickle" and name.startswith("build_"):
            return list  # of numbers, strings or tensors
        raise _Forbidden(f"{module}.{name}")

    def persistent_load(self, saved: Any) -> Tensor:
        """The numbers of a storage, one after the other."""
        _, dtype, key, _, count = saved
        data = bytearray(self._archive.read(f"{self._folder}data/{int(key)}"))
        return torch.frombuffer(data, dtype=dtype, count=count) if count else torch.empty(0, dtype=dtype)


def _rebuilt(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    return torch.as_strided(storage, size, stride, offset)  # within the storage, or torch refuses


def _tensors(module: Any, prefix: str) -> Iterator[tuple[str, Tensor]]:
    if not isinstance(module, _Module):
        return
    for name, value in module.attributes.items():
        if isinstance(value, Tensor):
            yield f"{prefix}{name}", value
        else:
            yield from _tensors(value, f"{prefix}{name}.")
