"""Work on fixed addresses, captured once and replayed."""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch


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
            torch.cuda.current_stream(self._device).synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.device(self._device), torch.cuda.graph(graph):
                work()
            self._graphs[key] = graph
        self._graphs[key].replay()
