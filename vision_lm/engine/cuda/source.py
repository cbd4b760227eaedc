"""The kernels' text: one translation unit, put together from the files in reading order."""

from __future__ import annotations

from importlib.resources import files

MEMORY_LAYER = "memory.cuh"
KERNELS = (
    "model.cuh",
    "stream.cuh",
    "panel.cuh",
    "norm.cuh",
    "project.cuh",
    "attention.cuh",
    "mix.cuh",
    "head.cuh",
    "persistent.cuh",
    "sample.cuh",
    "prefill.cuh",
)


def read(name: str) -> str:
    return f'#line 1 "{name}"\n' + (files(__package__) / name).read_text(encoding="utf-8")


def kernel_source() -> str:
    """Everything above the memory layer, the same for the GPU and the emulator."""
    return "\n".join(read(name) for name in KERNELS)


def device_source() -> str:
    return read(MEMORY_LAYER) + "\n" + kernel_source()
