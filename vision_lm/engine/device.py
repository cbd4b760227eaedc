"""Where a model computes, and in which precision."""

from __future__ import annotations

import torch

from vision_lm.engine.cpu.compile import processor
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


def tower_dtype(dtype: str, chosen: torch.dtype, device: torch.device) -> torch.dtype:
    """In which the image tower computes, where the model as a whole has `chosen`, of the `dtype` that was asked for.

    `auto` is float32 on a CPU that does not multiply bfloat16 numbers. The language model has kernels of its own.
    """
    return torch.float32 if dtype == "auto" and not multiplies_bfloat16(device) else chosen


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether torch gains by bfloat16 there: on a CPU without instructions for it, it takes several times as long."""
    return device.type != "cpu" or bool({"avx512_bf16", "amx_bf16"} & set(processor().split()))
