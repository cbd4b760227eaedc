"""What a step takes from the host and gives back: one copy each way, parts of the step's graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

PADDING = -1  # the length of an empty row


class Found(NamedTuple):
    """Of each row of a step, to the model itself."""

    tokens: list[int]
    logprobs: list[float]
    rivals: list[float]  # the log-probabilities of the likeliest other tokens


class Exchange:
    """Inputs and results of steps of up to B rows, at fixed addresses: pinned ones on the host, and the device's."""

    def __init__(self, rows: int, pages: int, device: torch.device) -> None:
        cuda = device.type == "cuda"
        sizes = (rows * (3 + pages), torch.int32), (2 * rows, torch.int64)
        self._sent, self._found = (torch.zeros(size, dtype=dtype, pin_memory=cuda) for size, dtype in sizes)
        self._inputs, self._results = (torch.zeros(size, dtype=dtype, device=device) for size, dtype in sizes)
        self.ids, self.lengths, self.table = _inputs(self._inputs, rows)
        self.next, self.logprobs, self.rivals = _results(self._results)
        self._host_ids, self._host_lengths, self._host_table = (
            part.numpy() for part in _inputs(self._sent, rows)
        )
        self._pages: list[Sequence[int]] = [()] * rows  # that the host's table shows
        self._device = device
        self._done = torch.cuda.Event() if cuda else None

    def fill(self, ids: Sequence[int], lengths: Sequence[int], pages: Sequence[Sequence[int]]) -> None:
        """The next step's rows; those that are left over are empty."""
        self.wait()  # an earlier step may still read what it was given
        count = len(ids)
        self._host_ids[:count] = ids
        self._host_lengths[:count] = lengths
        self._host_lengths[count:] = PADDING
        for row, new in enumerate(pages):
            if self._pages[row] != new:  # once in many steps
                self._host_table[row, : len(new)] = new
                self._pages[row] = list(new)

    def take(self) -> None:
        """The first part of a step: its inputs come."""
        self._inputs.copy_(self._sent, non_blocking=True)

    def give(self) -> None:
        """The last part of one: its results go."""
        self._found.copy_(self._results, non_blocking=True)

    def started(self) -> None:
        """The whole step has been given to the device."""
        if self._done is not None:
            self._done.record(torch.cuda.current_stream(self._device))

    def wait(self) -> None:
        """Until the last step that was started has ended."""
        if self._done is not None:
            self._done.synchronize()

    def results(self, count: int) -> Found:
        """Of the last step's first rows, when it has ended."""
        self.wait()
        return Found(*(part[:count].tolist() for part in _results(self._found)))


def _inputs(words: Tensor, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """int32 words -> ids (B,) int64, lengths (B,) int32, table (B, P) int32."""
    ids, lengths, table = words.split([2 * rows, rows, len(words) - 3 * rows])
    return ids.view(torch.int64), lengths, table.view(rows, -1)


def _results(words: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """int64 words -> tokens (B,) int64, and two of (B,) float32."""
    tokens, others = words.chunk(2)
    logprobs, rivals = others.view(torch.float32).chunk(2)
    return tokens, logprobs, rivals
