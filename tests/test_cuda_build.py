"""What NVRTC makes of the kernels, without a GPU: no spills, no local memory, 16-byte reads."""

from __future__ import annotations

import dataclasses
import io
import re
from pathlib import Path

import pytest
import torch

from vision_lm.engine.cuda import compile as build
from vision_lm.engine.cuda.errors import CudaDecoderError
from vision_lm.engine.cuda.shape import Bits, Shape
from vision_lm.engine.cuda.source import device_source

core = pytest.importorskip("cuda.core", reason="the CUDA kernels are built by cuda-core")
NVRTC = pytest.importorskip("cuda.bindings.nvrtc")
try:
    NVRTC.nvrtcVersion()
except Exception as missing:  # torch's wheel for CPUs brings none
    pytest.skip(f"NVRTC cannot be loaded ({missing})", allow_module_level=True)
KERNELS = {
    "embed_kernel",
    "project_kernel",
    "mix_kernel",
    "attend_kernel",
    "choose_kernel",
    "step_kernel",
    "sample_kernel",
    "norm_kernel",
    "finish_kernel",
}


def phi_1_5(element: torch.dtype, bits: Bits, batch: int) -> Shape:
    return Shape(2048, 8192, 32, 32, 64, 32, 51200, 24, 1e-5, element, bits, batch)


def phi_2(element: torch.dtype, bits: Bits, batch: int) -> Shape:
    return Shape(2560, 10240, 32, 32, 80, 32, 51200, 32, 1e-5, element, bits, batch)


def whole(shape: Shape) -> Shape:
    """The same with the step as one kernel."""
    return dataclasses.replace(shape, persistent=True)


def mini(element: torch.dtype, bits: Bits, batch: int) -> Shape:
    return Shape(256, 1024, 4, 4, 64, 32, 4096, 6, 1e-5, element, bits, batch)


BF16, FP16 = torch.bfloat16, torch.float16
GATES = [
    pytest.param("sm_90a", whole(phi_1_5(BF16, 16, 1)), id="phi-1.5 bf16, one row, sm_90a"),
    pytest.param("sm_80", whole(phi_2(FP16, 8, 1)), id="phi-2 fp16 int8, one row, sm_80"),
    pytest.param("sm_100a", whole(mini(BF16, 4, 1)), id="mini int4, one row, sm_100a"),
    pytest.param(
        "sm_90a", phi_1_5(FP16, 16, 8), id="phi-1.5 fp16, eight rows, sm_90a", marks=pytest.mark.slow
    ),
    pytest.param("sm_100a", phi_2(BF16, 4, 8), id="phi-2 int4, eight rows, sm_100a", marks=pytest.mark.slow),
    pytest.param("sm_80", phi_1_5(BF16, 8, 4), id="phi-1.5 int8, four rows, sm_80", marks=pytest.mark.slow),
    pytest.param(
        "sm_90a", whole(phi_2(BF16, 4, 1)), id="phi-2 int4, one row, sm_90a", marks=pytest.mark.slow
    ),
    pytest.param(
        "sm_90a", whole(phi_2(BF16, 16, 1)), id="phi-2 bf16, one row, sm_90a", marks=pytest.mark.slow
    ),
]


@pytest.mark.parametrize(("arch", "shape"), GATES)
def test_kernels_need_no_local_memory(arch: str, shape: Shape) -> None:
    options = core.ProgramOptions(
        arch=arch, std="c++17", define_macro=list(shape.defines().items()), ptxas_options=["-v"]
    )
    log = io.StringIO()
    try:
        program = core.Program(device_source(), "c++", options)
        program.compile("cubin", logs=log)
    except RuntimeError as error:
        if "invalid value for --gpu-architecture" in str(error):
            pytest.skip(f"this NVRTC does not know {arch}")
        raise
    used = re.findall(
        r"Compiling entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads",
        log.getvalue(),
        re.DOTALL,
    )
    assert {name for name, *_ in used} == KERNELS - (set() if shape.persistent else {"step_kernel"})
    assert all(bytes_ == ["0", "0", "0"] for _, *bytes_ in used), used


def ptx_of(shape: Shape) -> str:
    """By NVRTC itself: cuda-core asks the driver about PTX."""
    defines = [f"-D{name}={value}".encode() for name, value in shape.defines().items()]
    options = [b"--gpu-architecture=compute_90a", b"--std=c++17", *defines]
    _, program = NVRTC.nvrtcCreateProgram(device_source().encode(), b"kernels.cu", 0, [], [])
    (status,) = NVRTC.nvrtcCompileProgram(program, len(options), options)
    assert int(status) == 0
    _, size = NVRTC.nvrtcGetPTXSize(program)
    ptx = bytes(size)
    NVRTC.nvrtcGetPTX(program, ptx)
    return ptx.decode()


def test_weights_and_activations_are_read_16_bytes_at_a_time() -> None:
    shape = phi_1_5(BF16, 16, 1)
    ptx = ptx_of(shape)
    project = ptx[ptx.index(".entry project_kernel") :]
    project = project[: project.index("\n}\n")]
    waited = project.index("griddepcontrol.wait")
    asked = project.index("cp.async.cg.shared.global")
    assert asked < waited, "the first weights are on their way before the kernel waits"
    assert "cp.async.ca" not in project
    assert len(re.findall(r"ld\.shared\.v4", project)) >= 4
    assert not re.findall(r"ld\.global\.nc", project[:waited]), (
        "nothing is loaded that the wait could hold back"
    )


def test_a_build_is_kept_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = 'extern "C" __global__ void nothing() {}'
    monkeypatch.setattr(build, "device_source", lambda: source)
    shape = mini(BF16, 16, 1)
    first = build.build(shape, "sm_90a", tmp_path)
    (kept,) = tmp_path.iterdir()
    monkeypatch.setattr(core, "Program", None)  # nothing is compiled from here on
    assert build.build(shape, "sm_90a", tmp_path) == first
    with pytest.raises(CudaDecoderError):
        build.build(dataclasses.replace(shape, batch=2), "sm_90a", tmp_path)
    kept.write_bytes(kept.read_bytes()[:-1])  # damaged: as if it were not there
    with pytest.raises(CudaDecoderError):
        build.build(shape, "sm_90a", tmp_path)


def test_a_failed_build_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "device_source", lambda: "this is no program")
    with pytest.raises(CudaDecoderError, match="not built for sm_80 .*error") as caught:
        build.build(mini(BF16, 16, 1), "sm_80", tmp_path)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())
    monkeypatch.undo()
    with pytest.raises(CudaDecoderError, match="sm_12"):
        build.build(mini(BF16, 16, 1), "sm_12", tmp_path)
