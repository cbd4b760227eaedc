"""The machine that a figure belongs to: its name, its versions, how fast it reads memory, how much of it is in use."""

from __future__ import annotations

import datetime
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import vision_lm

PROBE_BYTES = {"cpu": 1 << 29, "cuda": 1 << 32}  # far larger than the caches
PROBE_DTYPES = (torch.float32, torch.float64)  # whichever a sum reads faster
PROBE_READS = 5
PACKAGES = ("torch", "open_clip_torch", "transformers")


@dataclass(frozen=True)
class Machine:
    """Where and when."""

    device: str
    cores: int
    threads: int  # that torch computes with
    python: str
    system: str
    versions: dict[str, str]
    date: str

    @classmethod
    def of(cls, device: torch.device, others: Sequence[str] = ()) -> Machine:
        """`others`: packages that a figure is of, too, where they are installed."""
        versions = {name: found for name in (*PACKAGES, *others) if (found := _version(name))}
        if device.type == "cuda":
            versions["cuda"] = str(torch.version.cuda)
        return cls(
            device=torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
            cores=os.cpu_count() or 1,
            threads=torch.get_num_threads(),
            python=platform.python_version(),
            system=platform.platform(),
            versions={"vision-lm": vision_lm.__version__} | versions,
            date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        )

    @property
    def packages(self) -> str:
        """The versions in a line."""
        return ", ".join(f"{name} {version}" for name, version in self.versions.items())


@dataclass(frozen=True)
class Bandwidth:
    """How fast memory is read: the sum of a buffer."""

    bytes_per_s: float
    buffer_bytes: int
    how: str


class BandwidthProbe:
    """Reads a buffer when asked, so that its readings can stand between the measurements they are to judge."""

    def __init__(self, device: torch.device, buffer_bytes: int | None = None) -> None:
        self._bytes = buffer_bytes or PROBE_BYTES.get(device.type, PROBE_BYTES["cpu"])
        # Ones: memory that is only allocated, or zero, need not exist.
        self._buffer = torch.ones(self._bytes // 4, device=device)
        self._seconds: dict[torch.dtype, list[float]] = {dtype: [] for dtype in PROBE_DTYPES}
        self._device = device
        self._turn()  # the first is slower

    def read(self) -> None:
        for _ in range(PROBE_READS):
            for dtype, seconds in self._turn().items():
                self._seconds[dtype].append(seconds)

    def result(self) -> Bandwidth:
        """Of the readings so far."""
        medians = {dtype: statistics.median(seconds) for dtype, seconds in self._seconds.items()}
        best = min(medians, key=lambda dtype: medians[dtype])
        how = f"median of {len(self._seconds[best])} sums of {self._bytes >> 20} MiB of {str(best)[6:]}"
        return Bandwidth(self._bytes / medians[best], self._bytes, how)

    def _turn(self) -> dict[torch.dtype, float]:
        return {
            dtype: seconds(self._buffer.view(dtype).sum, self._device) for dtype in PROBE_DTYPES
        }  # (N,) -> ()


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """Wall time of a call, the device's work included."""
    finish(device)
    start = time.perf_counter()
    call()
    finish(device)
    return time.perf_counter() - start


def finish(device: torch.device) -> None:
    """Wait for all that the device was told to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_resident_bytes() -> int:
    """The most memory that this process ever held."""
    unit = 1 if sys.platform == "darwin" else 1024  # Linux counts KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def cpu_name() -> str:
    """The processor's name; Linux keeps it in /proc."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
