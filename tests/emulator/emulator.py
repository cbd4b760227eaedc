"""Compile the kernels' own sources for the emulator, and run them on CPU tensors."""

from __future__ import annotations

import ctypes
import getpass
import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor

from vision_lm.engine.cuda.launch import Launch
from vision_lm.engine.cuda.shape import Shape
from vision_lm.engine.cuda.source import kernel_source

HERE = Path(__file__).parent
KERNEL_PARAMETERS = {
    "embed_kernel": ("Head", "Step"),
    "project_kernel": ("Layer", "Step"),
    "mix_kernel": ("Layer", "Step"),
    "attend_kernel": ("Attention", "Step"),
    "choose_kernel": ("Head", "Step"),
    "step_kernel": ("Whole", "Step"),
    "sample_kernel": ("Sampler", "Step"),
    "norm_kernel": ("Residual", "Tokens"),
    "finish_kernel": ("Projected", "Tokens"),
}
CONSTANTS = ("PROJECT_BYTES", "MIX_BYTES", "mix_sums_bytes(1)", "SAMPLE_BYTES")


@dataclass(frozen=True)
class Mutation:
    """A source text that must fail: `old` becomes `new`, at its every occurrence."""

    name: str
    old: str
    new: str

    def apply(self, source: str) -> str:
        changed = source.replace(self.old, self.new)
        assert changed != source, f"the mutation {self.name!r} changes nothing"
        return changed


class Region(ctypes.Structure):
    _fields_ = [
        ("start", ctypes.c_void_p),
        ("size", ctypes.c_longlong),
        ("constant", ctypes.c_longlong),
        ("reads", ctypes.c_void_p),
    ]


class RawLaunch(ctypes.Structure):
    _fields_ = [
        ("kernel", ctypes.c_char_p),
        ("blocks", ctypes.c_int),
        ("threads", ctypes.c_int),
        ("shared", ctypes.c_int),
        ("first", ctypes.c_void_p),
        ("second", ctypes.c_void_p),
    ]


class EmulatedKernels:
    """A build behind the face that the decoder launches through, with all memory open to it."""

    def __init__(self, shape: Shape, device: object) -> None:
        self._emulator = Emulator(shape)
        self._seed = 0

    def run(self, launches: Sequence[Launch]) -> None:
        self._seed += 1
        failure = self._emulator.run(launches, None, self._seed)
        assert failure is None, failure


@dataclass(frozen=True)
class Memory:
    """The tensors that kernels may touch. Anything else is an error."""

    constant: Sequence[Tensor]
    variable: Sequence[Tensor]
    reads: dict[int, np.ndarray] = field(default_factory=dict)  # data_ptr -> reads of each 4 bytes

    def regions(self) -> Iterator[Region]:
        for constant, tensors in ((1, self.constant), (0, self.variable)):
            for tensor in tensors:
                assert tensor.is_contiguous()
                size = tensor.numel() * tensor.element_size()
                reads = self.reads.setdefault(tensor.data_ptr(), np.zeros(-(-size // 4), np.uint16))
                yield Region(tensor.data_ptr(), size, constant, reads.ctypes.data)

    def reads_of(self, tensor: Tensor) -> np.ndarray:
        return self.reads[tensor.data_ptr()]


class Emulator:
    """One build of the kernels."""

    def __init__(self, shape: Shape, mutation: Mutation | None = None) -> None:
        self.shape = shape
        self._library = ctypes.CDLL(str(build(shape, mutation)))
        self._library.emulate.restype = ctypes.c_char_p
        self._library.constant.restype = ctypes.c_longlong

    def constant(self, name: str) -> int:
        return self._library.constant(name.encode())

    def run(self, launches: Sequence[Launch], memory: Memory | None, seed: int) -> str | None:
        """None when all kernels ended, else why not. Without `memory` they may touch anything."""
        regions = list(memory.regions()) if memory is not None else [Region(0, 2**62, 0, None)]
        chain = (RawLaunch * len(launches))(*(raw(launch) for launch in launches))
        table = (Region * len(regions))(*regions)
        failure = self._library.emulate(chain, len(launches), table, len(regions), ctypes.c_uint(seed))
        return failure.decode() if failure is not None else None


def raw(launch: Launch) -> RawLaunch:
    first, second = (ctypes.addressof(parameters) for parameters in launch.parameters)
    return RawLaunch(launch.kernel.encode(), launch.blocks, launch.threads, launch.shared, first, second)


def build(shape: Shape, mutation: Mutation | None = None) -> Path:
    """The shared library of a shape, kept for as long as the sources stay the same."""
    source = kernel_source()
    if mutation is not None:
        source = mutation.apply(source)
    kernels = {
        name: both for name, both in KERNEL_PARAMETERS.items() if shape.persistent or name != "step_kernel"
    }
    takes = " ".join(f"TAKES({kernel}, {a}, {b})" for kernel, (a, b) in kernels.items())
    constants = " ".join(f"IS({name})" for name in CONSTANTS)
    defines = shape.defines() | {"KERNELS": takes, "CONSTANTS": constants}
    parts = [f"#define {name} {value}" for name, value in defines.items()]
    parts += ['#include "memory.h"', source, (HERE / "harness.cpp").read_text()]
    machine = compile_text((HERE / "machine.cpp").read_text(), ["-O2", "-c"], ".o")
    return compile_text("\n".join(parts), ["-O1", "-shared", str(machine)], ".so")


def compile_text(text: str, flags: list[str], suffix: str) -> Path:
    """g++ of a text, cached by everything it reads."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("the CUDA emulator needs g++")
    headers = "".join((HERE / name).read_text() for name in ("machine.h", "memory.h"))
    digest = hashlib.sha256("\n".join([text, headers, *flags]).encode()).hexdigest()[:24]
    folder = Path(tempfile.gettempdir()) / f"vision-lm-emulator-{getpass.getuser()}"
    folder.mkdir(exist_ok=True)
    output = folder / f"{digest}{suffix}"
    if not output.exists():
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            (unit := Path(scratch) / "unit.cpp").write_text(text)
            built = Path(scratch) / "built"
            always = ["-std=c++17", "-w", "-fPIC", "-ffp-contract=off", f"-I{HERE}", "-o", str(built)]
            result = subprocess.run([compiler, *always, str(unit), *flags], capture_output=True, text=True)
            assert result.returncode == 0, result.stderr[:3000]
            built.replace(output)
    return output
