"""Where a model computes, and in which precision."""

from __future__ import annotations

import torch

from vision_lm.errors import RequestError

SMALL = 200_000_000  # parameters: below, a CPU computes in float32 whatever the stored dtype
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_device(device: str) -> torch.device:
    """`auto` is the first GPU, or else the CPU. Raises RequestError for a device that is not here."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except Exception as error:  # torch asserts, or raises RuntimeError or its own AcceleratorError
        reason = str(error).splitlines()[0][:100]
        raise RequestError(f"device {device!r} cannot be used ({reason}); give auto, cpu or cuda") from error
    return chosen


def choose_dtype(dtype: str, stored: str, parameters: int, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 on a GPU; on a CPU float32 for a small model, the stored dtype for a large one."""
    if dtype == "auto":
        dtype = "bfloat16" if device.type == "cuda" else "float32" if parameters < SMALL else stored
    if dtype not in DTYPES:
        raise RequestError(f"dtype {dtype!r} is unknown; give auto, {', '.join(DTYPES)}")
    return DTYPES[dtype]
