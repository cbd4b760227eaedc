"""NVRTC through cuda-core: the kernels of a shape, built at first use and kept on disk."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from vision_lm.engine.build_cache import build_key, cache_folder, read_build, write_build
from vision_lm.engine.cuda.errors import CudaDecoderError
from vision_lm.engine.cuda.launch import Launch
from vision_lm.engine.cuda.shape import Shape
from vision_lm.engine.cuda.source import device_source

OLDEST = (8, 0)  # Ampere: the first with asynchronous copies and bfloat16


def build(shape: Shape, arch: str, folder: Path | None = None) -> bytes:
    """The cubin of a shape for `sm_…`, from disk where it is. Needs no GPU. Raises CudaDecoderError."""
    try:
        from cuda.bindings import nvrtc
        from cuda.core import Program, ProgramOptions

        source, defines = device_source(), shape.defines()
        status, *version = nvrtc.nvrtcVersion()
        kept = (
            folder or cache_folder()
        ) / f"{build_key(source, sorted(defines.items()), arch, version)}.cubin"
        if (code := read_build(kept)) is not None:
            return code
        options = ProgramOptions(arch=arch, std="c++17", define_macro=list(defines.items()))
        code = bytes(Program(source, "c++", options).compile("cubin").code)
    except Exception as error:  # no cuda-core, no NVRTC, an architecture it does not know, a failed build
        raise CudaDecoderError(f"the CUDA kernels were not built for {arch} ({in_short(error)})") from error
    write_build(kept, code)
    return code


def in_short(error: BaseException) -> str:
    """What a compiler, a driver or torch says, in short."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if "error:" in line), lines[0] if lines else repr(error))[:200]


class GpuKernels:
    """The kernels of one shape on one GPU, launched on torch's current stream."""

    def __init__(self, shape: Shape, device: torch.device) -> None:
        """Raises CudaDecoderError."""
        self.device = device
        try:
            major, minor = torch.cuda.get_device_capability(device)
        except Exception as error:  # no driver, or one that is too old for torch
            raise CudaDecoderError(f"the CUDA kernels find no GPU ({in_short(error)})") from error
        if (major, minor) < OLDEST:
            raise CudaDecoderError(f"the CUDA kernels need sm_80 or newer; this GPU is sm_{major}{minor}")
        self._overlaps = major >= 9  # programmatic dependent launch
        code = build(shape, f"sm_{major}{minor}" + ("a" if major >= 9 else ""))
        try:
            from cuda.bindings import driver
            from cuda.core import Device, ObjectCode

            torch.cuda.init()
            Device(torch.cuda.current_device() if device.index is None else device.index).set_current()
            self._driver: Any = driver
            self._code = ObjectCode.from_cubin(code)
            self._handles: dict[str, Any] = {}
        except Exception as error:
            raise CudaDecoderError(f"the CUDA kernels cannot be loaded ({in_short(error)})") from error

    def run(self, launches: Sequence[Launch]) -> None:
        """One after the other; each may start its prologue while the one before ends."""
        stream = torch.cuda.current_stream(self.device).cuda_stream
        with torch.cuda.device(self.device):
            for number, launch in enumerate(launches):
                self._launch(launch, stream, overlaps=self._overlaps and number > 0)

    def _launch(self, launch: Launch, stream: int, overlaps: bool) -> None:
        driver = self._driver
        kinds = driver.CUlaunchAttributeID
        attributes = []
        if launch.cooperative:
            attributes.append(driver.CUlaunchAttribute())
            attributes[-1].id = kinds.CU_LAUNCH_ATTRIBUTE_COOPERATIVE
            attributes[-1].value.cooperative = 1
        elif overlaps:
            attributes.append(driver.CUlaunchAttribute())
            attributes[-1].id = kinds.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
            attributes[-1].value.programmaticStreamSerializationAllowed = 1
        config = driver.CUlaunchConfig()
        config.gridDimX, config.gridDimY, config.gridDimZ = launch.blocks, 1, 1
        config.blockDimX, config.blockDimY, config.blockDimZ = launch.threads, 1, 1
        config.sharedMemBytes = launch.shared
        config.hStream = stream
        config.attrs, config.numAttrs = attributes, len(attributes)
        addresses = (ctypes.c_void_p * len(launch.parameters))(*map(ctypes.addressof, launch.parameters))
        kernel = self._kernel(launch.kernel, launch.shared)
        self._check(driver.cuLaunchKernelEx(config, kernel, ctypes.addressof(addresses), 0))

    def _kernel(self, name: str, shared: int) -> Any:
        if name not in self._handles:
            driver = self._driver
            kernel = driver.CUkernel(int(self._code.get_kernel(name).handle))
            (_, function) = self._check(driver.cuKernelGetFunction(kernel))
            attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            self._check(driver.cuFuncSetAttribute(function, attribute, shared))
            self._handles[name] = function
        return self._handles[name]

    def _check(self, result: tuple[Any, ...]) -> tuple[Any, ...]:
        if int(result[0]) != 0:
            raise CudaDecoderError(f"the CUDA driver answers {result[0]!r} to a kernel")
        return result
