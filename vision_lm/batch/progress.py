"""A bar on stderr: how many pictures are done, how many a second, and for how long it will go on."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any


class Progress:
    """The bar of a run of `pictures`, where one is `shown`.

    Rate and remaining time are of this run's own work: what an earlier run had answered is done from the beginning,
    though which pictures that is turns out one by one.
    """

    def __init__(self, pictures: int, *, shown: bool) -> None:
        self._bar: Any = None
        if shown:
            from tqdm import tqdm

            self._bar = tqdm(
                total=pictures, unit=" pictures", file=sys.stderr, dynamic_ncols=True, smoothing=0.05
            )

    def show(self, done: int, kept: int) -> None:
        """So many pictures have their row by now, `kept` of them with the answers of an earlier run."""
        if self._bar is not None and not self._bar.disable:  # TQDM_DISABLE, the bar's own switch
            more = kept - self._bar.initial
            self._bar.initial += more
            self._bar.n += more
            self._bar.last_print_n += more  # between two prints the bar measures its rate
            self._bar.update(done - self._bar.n)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
