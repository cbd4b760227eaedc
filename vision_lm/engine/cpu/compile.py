"""The C++ kernels as a library for this very processor, built by its own compiler at first use and kept on disk."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from vision_lm.engine.build_cache import build_key, cache_folder, read_build, write_build
from vision_lm.engine.cpu.errors import CpuKernelError

SOURCES = Path(__file__).parent
UNITS = (SOURCES / "product.cpp", SOURCES / "decoder.cpp")
COMPILERS = ("c++", "g++", "clang++")
FLAGS = ("-std=c++20", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-fPIC", "-pthread", "-w")
NATIVE = "-march=native"
SECONDS = 120  # after which a compiler is given up


def build(folder: Path | None = None, target: str = NATIVE) -> bytes:
    """The library, from disk where it is. Raises CpuKernelError: no compiler, or one that cannot build it."""
    compiler = find_compiler()
    flags = [*FLAGS, target]
    text = "".join(path.read_text(encoding="utf-8") for path in sorted(SOURCES.glob("*.[ch]*")))
    kept = (
        folder or cache_folder()
    ) / f"{build_key(text, flags, compiler, _version(compiler), processor())}.so"
    if (code := read_build(kept)) is not None:
        return code
    with tempfile.TemporaryDirectory() as scratch:
        code = _compiled([compiler, *flags], Path(scratch))
    write_build(kept, code)
    return code


def _compiled(command: list[str], scratch: Path) -> bytes:
    """Every source by itself, side by side, and then all together."""
    objects = [scratch / f"{source.stem}.o" for source in UNITS]
    with ThreadPoolExecutor() as pool:
        pairs = zip(UNITS, objects, strict=True)
        list(pool.map(lambda pair: _made([*command, "-c", str(pair[0])], pair[1]), pairs))
    return _made([*command, "-shared", *map(str, objects)], scratch / "decoder.so").read_bytes()


def _made(command: list[str], file: Path) -> Path:
    done = _run([*command, "-o", str(file)])
    if done.returncode or not file.exists():
        raise CpuKernelError(f"{command[0]} did not build the CPU kernels ({_reason(done.stderr)})")
    return file


def load(target: str = NATIVE) -> ctypes.CDLL:
    """The library in this process. Raises CpuKernelError."""
    code = build(target=target)
    with tempfile.NamedTemporaryFile(suffix=".so") as file:  # the kept one carries its hash in front
        file.write(code)
        file.flush()
        try:
            return ctypes.CDLL(file.name)
        except OSError as error:
            raise CpuKernelError(f"the CPU kernels cannot be loaded ({error})") from None


def find_compiler() -> str:
    """$CXX, or the first of `COMPILERS` on the path."""
    for name in filter(None, (os.environ.get("CXX"), *COMPILERS)):
        if found := shutil.which(name):
            return found
    raise CpuKernelError("no C++ compiler was found; install g++ or clang++, or name one in CXX")


def processor() -> str:
    """What `-march=native` depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    return "\n".join(line for line in lines if line.startswith(("model", "flags", "CPU", "Features")))


def _version(compiler: str) -> str:
    return _run([compiler, "--version"]).stdout


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CpuKernelError(f"{command[0]} cannot be run ({error})") from None


def _reason(messages: str) -> str:
    lines = [line.strip() for line in messages.splitlines() if line.strip()]
    return next((line for line in lines if "error" in line), lines[0] if lines else "no message")[:200]
