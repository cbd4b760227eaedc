"""Where the CUDA kernels cannot be had: one line in the log, and torch decodes."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from tests.emulator.emulator import EmulatedKernels
from tests.emulator.model import PHI_1_5, random_weights
from vision_lm.engine import Engine, Prompt, Sampling, TorchDecoder
from vision_lm.engine.cuda import compile as building
from vision_lm.engine.cuda import graphs
from vision_lm.engine.cuda.compile import GpuKernels
from vision_lm.engine.cuda.decoder import Limits
from vision_lm.engine.cuda.errors import CudaDecoderError
from vision_lm.engine.cuda.launch import Launch
from vision_lm.engine.cuda.shape import Shape
from vision_lm.engine.decoders import KernelDecoder, kernel_decoder

CPU, GPU = torch.device("cpu"), torch.device("cuda")
SMALL = Limits(blocks=2, shared=100 * 1024)
WEIGHTS = random_weights(PHI_1_5)


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """What the log says, whatever a command or a server in this process has made of it."""
    monkeypatch.setattr(logging.getLogger("vision_lm"), "propagate", True)
    caplog.set_level(logging.INFO, logger="vision_lm")
    return caplog


def one_warning(heard: pytest.LogCaptureFixture, *said: str) -> None:
    (record,) = heard.records
    assert record.levelno == logging.WARNING
    for part in (*said, "decoding in torch"):
        assert part in record.getMessage()
    assert "\n" not in record.getMessage()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize("limits", [None, SMALL], ids=["asked of torch", "asked of the driver"])
def test_without_a_driver(heard: pytest.LogCaptureFixture, limits: Limits | None) -> None:
    """As this machine is: what torch and the driver say is one line, and no exception."""
    assert kernel_decoder(PHI_1_5, WEIGHTS, GPU, torch.bfloat16, limits=limits) is None
    one_warning(heard, "GPU")


def test_an_old_gpu(monkeypatch: pytest.MonkeyPatch, heard: pytest.LogCaptureFixture) -> None:
    """A Turing card is named by its capability, and nothing is compiled for it."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(building, "build", lambda *_: pytest.fail("it was compiled"))
    assert kernel_decoder(PHI_1_5, WEIGHTS, GPU, torch.float16, limits=SMALL) is None
    one_warning(heard, "need sm_80 or newer", "sm_75")


def test_a_head_size_that_is_not_compiled(heard: pytest.LogCaptureFixture) -> None:
    """A model that the kernels are not made for is decoded all the same."""
    config = dataclasses.replace(PHI_1_5, num_attention_heads=2, num_key_value_heads=2)
    assert kernel_decoder(config, WEIGHTS, CPU, torch.bfloat16, None, EmulatedKernels, SMALL) is None
    one_warning(heard, "head size 128")


class NoMemory(EmulatedKernels):
    """A GPU that is full once the kernels are loaded."""

    def __init__(self, shape: Shape, device: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nGPU 0 has …")


class NotBuilt(EmulatedKernels):
    """What a kernel that the compiler refuses comes to: see `test_cuda_build.py`."""

    def __init__(self, shape: Shape, device: object) -> None:
        raise CudaDecoderError("not built for sm_90a: NVRTC: error: identifier is undefined")


class NoStart(EmulatedKernels):
    """Kernels that are built, loaded, and refused by the driver when they are launched."""

    def run(self, launches: Sequence[Launch]) -> None:
        raise CudaDecoderError("the CUDA driver answers <CUDA_ERROR_INVALID_IMAGE: 200> to a kernel")


class NoEnd(EmulatedKernels):
    """Kernels that start, of which torch hears later that they failed."""

    def run(self, launches: Sequence[Launch]) -> None:
        raise RuntimeError(
            "CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be"
        )


class NoAttention(EmulatedKernels):
    """All start but the one that only a large batch needs."""

    def run(self, launches: Sequence[Launch]) -> None:
        if any(launch.kernel == "attend_kernel" for launch in launches):
            raise CudaDecoderError("the CUDA driver answers <CUDA_ERROR_INVALID_VALUE: 1> to a kernel")
        super().run(launches)


@pytest.mark.parametrize(
    ("kernels", "said"),
    [
        (NoMemory, "no memory for the CUDA kernels"),
        (NotBuilt, "not built for sm_90a"),
        (NoStart, "CUDA_ERROR_INVALID_IMAGE"),
        (NoEnd, "illegal memory access"),
        (NoAttention, "CUDA_ERROR_INVALID_VALUE"),
    ],
)
def test_kernels_that_are_not_built_or_do_not_run(
    kernels: type[EmulatedKernels], said: str, heard: pytest.LogCaptureFixture
) -> None:
    """It is found out when the decoder is made, not by the first request."""
    assert kernel_decoder(PHI_1_5, WEIGHTS, CPU, torch.bfloat16, None, kernels, SMALL) is None
    one_warning(heard, said)


@pytest.mark.parametrize("mode", [None, "int8"])
def test_kernels_that_run_are_tried_out_and_then_answer(mode: Any, heard: pytest.LogCaptureFixture) -> None:
    """The decoder is the kernels', the log is silent, and the trial leaves nothing behind that changes an answer."""
    tried = kernel_decoder(PHI_1_5, WEIGHTS, CPU, torch.float16, mode, EmulatedKernels, SMALL)
    assert isinstance(tried, KernelDecoder) and not heard.records
    torch_decoder = TorchDecoder(PHI_1_5, WEIGHTS, CPU, torch.float16, mode)
    answers = [
        Engine(one, lambda _: [], image_token_id=-1, cache_tokens=256).generate(
            [Prompt([5, 9, 2, 61, 17])], Sampling(max_tokens=4)
        )[0]
        for one in (tried, torch_decoder)
    ]
    assert answers[0].tokens == answers[1].tokens


def test_a_step_that_cannot_be_captured_is_done_without_a_graph(
    monkeypatch: pytest.MonkeyPatch, heard: pytest.LogCaptureFixture
) -> None:
    """One line for it, and the work is done each time, the first time too; capturing is not tried again."""
    tries: list[str] = []

    def refused(*_: Any) -> Any:
        tries.append("capture")
        raise RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be")

    monkeypatch.setattr(graphs, "capture", refused)
    steps, done = graphs.Graphs(GPU), list[int]()
    for number in range(3):
        steps.run("greedy", lambda number=number: done.append(number))  # type: ignore[misc]
    assert sorted(set(done)) == [0, 1, 2]
    assert tries == ["capture"]
    assert [record.getMessage() for record in heard.records] == ["no CUDA graph (CUDA error: out of memory)"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_the_drivers_absence_is_one_error_of_the_kernels() -> None:
    """Whoever makes them without asking first."""
    with pytest.raises(CudaDecoderError, match="find no GPU"):
        GpuKernels(Shape.of(PHI_1_5, torch.bfloat16), GPU)
