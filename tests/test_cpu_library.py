"""The C++ kernels as a library: chosen where they can be built, kept once they are; and its threads, which hold nobody up."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.conftest import random_phi, text_config
from tests.forced_steps import CPU, LAYOUTS
from vision_lm.engine import TorchDecoder, make_decoder
from vision_lm.engine.cpu import compile as compiling
from vision_lm.engine.cpu.decoder import CpuDecoder


def test_the_machine_gets_the_kernels() -> None:
    """`make_decoder` chooses them on a CPU with a compiler."""
    config = text_config(**LAYOUTS["heads of 32"])
    assert isinstance(make_decoder(config, random_phi(config).state_dict(), CPU, torch.float32), CpuDecoder)


@pytest.mark.parametrize(
    ("compiler", "message"),
    [
        ("", "no C++ compiler was found; install g++ or clang++, or name one in CXX"),
        ("#!/bin/sh\necho 'decoder.cpp:1: error: no such thing' >&2; exit 1", "no such thing"),
    ],
)
def test_without_a_compiler_torch_decodes(
    compiler: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """No compiler, or one that fails: one warning in the log, with the reason or what to do, and the torch decoder."""
    if compiler:
        (tmp_path / "c++").write_text(compiler)
        (tmp_path / "c++").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin" if compiler else str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    config = text_config()
    log = logging.getLogger("vision_lm")
    monkeypatch.setattr(
        log, "propagate", True
    )  # a server that ran before in this process keeps its lines to itself
    with caplog.at_level(logging.INFO, logger="vision_lm"):
        decoder = make_decoder(config, random_phi(config).state_dict(), CPU, torch.float32)
    assert type(decoder) is TorchDecoder
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert message in record.getMessage() and "decoding in torch" in record.getMessage()


def test_builds_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second build reads the first from disk; a damaged one is built again."""
    first = compiling.build(tmp_path)
    (kept,) = tmp_path.iterdir()
    content = kept.read_bytes()
    kept.write_bytes(content[:-1])
    assert compiling.build(tmp_path) == first
    monkeypatch.setattr(compiling, "FLAGS", compiling.FLAGS)
    runs = []
    monkeypatch.setattr(compiling, "_run", lambda command: runs.append(command) or VERSION(command))
    assert compiling.build(tmp_path) == first
    assert all("--version" in command for command in runs)


def VERSION(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_process_with_a_team_ends() -> None:
    """Threads that wait for work keep no program from ending."""
    code = "from vision_lm.engine.cpu.library import Team; team = Team.start(3); print('made')"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout == "made\n"


def test_every_piece_is_done_once(tmp_path: Path) -> None:
    """Teams on their own, in C++: any number of pieces, threads that sleep and threads that are late."""
    flags = [flag for flag in compiling.FLAGS if flag not in ("-shared", "-fPIC")]
    source, made = Path(__file__).parent / "team.cpp", tmp_path / "team"
    subprocess.run([compiling.find_compiler(), *flags, str(source), "-o", str(made)], check=True)
    subprocess.run([str(made)], timeout=120, check=True)


def test_products_on_a_processor_of_another_make(tmp_path: Path) -> None:
    """An ARM one, where its compiler and an emulator are installed: in a program of their own."""
    compiler, emulator = "aarch64-linux-gnu-g++", "qemu-aarch64"
    if not shutil.which(compiler) or not shutil.which(emulator):
        pytest.skip(f"needs {compiler} and {emulator}")
    sources = [str(Path(__file__).parent / "products.cpp"), *map(str, compiling.UNITS)]
    made = tmp_path / "products"
    subprocess.run([compiler, *compiling.FLAGS, "-static", *sources, "-o", str(made)], check=True)
    done = subprocess.run([emulator, str(made)], timeout=120, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_a_system_without_threads_to_give() -> None:
    """A team is then of those that there are."""
    code = """
import resource, torch
from vision_lm.engine.cpu.library import Team
from vision_lm.engine.cpu.linear import NativeLinear
Team.start(1)  # what is loaded takes no memory from the threads
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
limits = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), limits[1]))
team = Team.start(500)
resource.setrlimit(resource.RLIMIT_AS, limits)
weight, x = torch.randn(256, 64), torch.randn(3, 64)
assert torch.allclose(NativeLinear.pack(team, weight, None, None, torch.float32)(x), x @ weight.T, atol=1e-4)
"""
    subprocess.run([sys.executable, "-c", code], timeout=120, check=True)
