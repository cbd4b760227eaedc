"""Work on fixed addresses, captured once and replayed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch

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


class Graphs:
    """CUDA graphs by key. Away from a GPU the work is simply done."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._graphs: dict[Hashable, torch.cuda.CUDAGraph] = {}

    def run(self, key: Hashable, work: Callable[[], None]) -> None:
        """`work` must give the same when it is done again: the first time it is done once more, by the graph."""
        if self._device.type != "cuda":
            return work()
        if key not in self._graphs:
            work()  # loads kernels and chooses algorithms, which capturing must not
            self._graphs[key], _ = capture(self._device, work)
        self._graphs[key].replay()
