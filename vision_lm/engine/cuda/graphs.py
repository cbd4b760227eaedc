"""Work on fixed addresses, captured once and replayed."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch

from vision_lm.engine.cuda.errors import CudaDecoderError

log = logging.getLogger(__name__)
Output = TypeVar("Output")
_CAPTURING = threading.Lock()  # torch captures on one stream, the whole process's


def capture(
    device: torch.device, work: Callable[[], Output], pool: Any = None
) -> tuple[torch.cuda.CUDAGraph, Output]:
    """A graph of `work`, which must have run once, and what it gave. Other threads go on with their own work meanwhile."""
    graph, before = torch.cuda.CUDAGraph(), torch.cuda.current_stream(device)
    before.synchronize()
    try:
        with (
            _CAPTURING,
            torch.cuda.device(device),
            torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"),
        ):
            output = work()
    finally:
        torch.cuda.set_stream(before)  # which torch forgets when a capture fails
    return graph, output


def unless_refused(capturing: Callable[[], Output]) -> Output | None:
    """A captured graph, or None after one line in the log: the work goes on without, slower, and as right."""
    try:
        return capturing()
    # An operation that waits for the GPU, no memory, or a driver that will not.
    except (RuntimeError, CudaDecoderError) as error:
        log.warning("no CUDA graph (%s)", next(iter(str(error).splitlines()), repr(error)))
        return None


class Graphs:
    """CUDA graphs by key. Away from a GPU the work is simply done."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._graphs: dict[Hashable, torch.cuda.CUDAGraph | None] = {}  # None: it cannot be captured

    def run(self, key: Hashable, work: Callable[[], None]) -> None:
        """`work` must give the same when it is done again: the first time it is done once more, by the graph."""
        if self._device.type != "cuda":
            return work()
        if key not in self._graphs:
            work()  # loads kernels and chooses algorithms, which capturing must not
            self._graphs[key] = unless_refused(lambda: capture(self._device, work)[0])
        graph = self._graphs[key]
        if graph is None:
            return work()
        graph.replay()
