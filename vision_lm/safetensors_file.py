"""A file of safetensors, written one tensor after the other: what is made on the way need not all be in memory at once.

The `safetensors` package writes whole dictionaries. The bytes are the same (its README.md, "Format").
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from vision_lm.errors import CheckpointError

# In the order in which the package puts them, the wider before the narrower, so that each tensor is aligned.
_NAMES = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
}
_ORDER = list(_NAMES)
_ALIGNED = 8  # bytes, of the header


def write_tensors(path: Path, like: Mapping[str, Tensor], make: Callable[[str], Tensor]) -> None:
    """Write `make(name)` for every name of `like`, which tells their shapes and types, on whatever device.

    Raises CheckpointError for a type that no weight has.
    """
    for name, tensor in like.items():
        if tensor.dtype not in _NAMES:
            kinds = ", ".join(str(one).removeprefix("torch.") for one in _NAMES)
            raise CheckpointError(f"{path}: {name} is {tensor.dtype}; allowed: {kinds}")
    names = sorted(like, key=lambda name: (_ORDER.index(like[name].dtype), name))
    with path.open("wb") as file:
        file.write(_header(names, like))
        for name in names:
            tensor = make(name).detach().cpu().contiguous()
            if (tensor.shape, tensor.dtype) != (like[name].shape, like[name].dtype):
                raise ValueError(
                    f"{name} is not what the header says"
                )  # the reader would take the next one's bytes
            file.write(tensor.reshape(-1).view(torch.uint8).numpy().data)


def _header(names: list[str], like: Mapping[str, Tensor]) -> bytes:
    """Its length, then where each tensor lies behind it."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        start, end = end, end + like[name].nbytes
        kind, shape = _NAMES[like[name].dtype], list(like[name].shape)
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNED)
    return len(text).to_bytes(8, "little") + text
