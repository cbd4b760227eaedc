"""Work of a few shapes that come again and again, as CUDA graphs: captured when a shape comes back, replayed from then on."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from vision_lm.engine.cuda.graphs import capture, unless_refused


@dataclass(frozen=True)
class Captured:
    """One graph, where it reads and where it writes."""

    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, ...]
    output: Tensor

    def replay(self, inputs: tuple[Tensor, ...]) -> Tensor:
        for kept, given in zip(self.inputs, inputs, strict=True):
            kept.copy_(given, non_blocking=True)
        self.graph.replay()
        return self.output.clone()


class RecentGraphs:
    """Graphs by key, the least recently used dropped beyond `most`. Any thread may call it; away from a GPU all work is eager.

    A key is captured only if it comes again before `most` other new ones: capturing costs many times what it saves.
    """

    def __init__(self, device: torch.device, most: int) -> None:
        self._device, self._most = device, most
        self._met: OrderedDict[Hashable, None] = OrderedDict()  # once, and not captured yet
        self._graphs: OrderedDict[Hashable, Captured | None] = OrderedDict()  # None: it cannot be captured
        # One graph runs at a time, so all may compute in the same memory.
        self._pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None
        self._lock = threading.Lock()

    def run(self, key: Hashable, work: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """`work(*inputs)`, the caller's own. What a key stands for never changes, but for the contents of `inputs`."""
        if self._device.type != "cuda":
            return work(*inputs)
        with self._lock:
            if key not in self._graphs:
                if key not in self._met:
                    self._met[key] = None
                    if len(self._met) > self._most:
                        self._met.popitem(last=False)
                    return work(*inputs)
                del self._met[key]
                self._graphs[key] = unless_refused(partial(self._capture, work, inputs))
                if len(self._graphs) > self._most:
                    self._graphs.popitem(last=False)
            self._graphs.move_to_end(key)
            captured = self._graphs[key]
            return work(*inputs) if captured is None else captured.replay(inputs)

    def _capture(self, work: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> Captured:
        kept = tuple(one.clone() for one in inputs)
        work(*kept)  # loads kernels and chooses algorithms, which capturing must not
        graph, output = capture(self._device, lambda: work(*kept), self._pool)
        return Captured(graph, kept, output)
