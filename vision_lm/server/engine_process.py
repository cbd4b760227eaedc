"""A process in which a model's engine computes: how it is started, and what it does.

Little is imported here: while the process loads its model, the one that started it can load what it needs itself.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import vision_lm
from vision_lm.errors import VisionLMError
from vision_lm.frames import receive, send
from vision_lm.server.log_lines import log_to_stderr

if TYPE_CHECKING:
    from vision_lm.engine.desk import Ready
    from vision_lm.engine.quantize import Mode

# -P: nothing is imported from the current folder.
START = "import sys; sys.path.append(sys.argv[1]); from vision_lm.server.engine_process import main; main()"
COMMAND = [sys.executable, "-P", "-c", START, str(Path(vision_lm.__file__).parents[1])]
LAST_SECONDS = 10  # for the process, when its pipe has closed


@dataclass(frozen=True)
class Order:
    """What it is to load."""

    source: str
    device: str
    quantize: Mode = None
    cache_tokens: int | None = None


class EngineProcess:
    """Loads a checkpoint, then answers over its pipes: see `vision_lm.server.apart`."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self.closing = False
        self._process = subprocess.Popen(COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdin is not None and self._process.stdout is not None
        self.to_engine, self.from_engine = self._process.stdin, self._process.stdout
        with contextlib.suppress(OSError):  # it has ended already: `ready` says so
            send(self.to_engine, self.order)

    @property
    def pid(self) -> int:
        return self._process.pid

    def ready(self) -> Ready:
        """Wait until it has loaded. Raises CheckpointError and whatever else `vision_lm.load` raises."""
        try:
            found: Ready | VisionLMError = receive(self.from_engine)
        except EOFError:
            status = self._process.wait()
            message = f"the engine's process ended with status {status} while it loaded {self.order.source}"
            raise VisionLMError(message) from None
        if isinstance(found, VisionLMError):
            raise found
        return found

    def close(self) -> None:
        """End it; what it was at is given up."""
        self.closing = True
        killer = threading.Timer(LAST_SECONDS, self._process.kill)
        killer.daemon = True
        killer.start()
        with contextlib.suppress(OSError):
            self.to_engine.close()  # waits for one who writes to an engine that does not read
        self._process.wait()
        killer.cancel()


def main() -> None:
    """The process itself: an order, then requests, until its input ends."""
    # These are for the one that asks, which first lets answers come to their end.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not get between the answers
    with contextlib.suppress(EOFError, BrokenPipeError):  # the other side is over, or was killed
        order: Order = receive(sys.stdin.buffer)
        from vision_lm.engine.desk import Desk, Ready  # and with it torch

        try:
            vlm = vision_lm.load(
                order.source, order.device, quantize=order.quantize, cache_tokens=order.cache_tokens
            )
        except VisionLMError as error:
            send(answers, error)
            return
        log_to_stderr()
        desk, engine = Desk(vlm.engine, answers), vlm.engine
        send(answers, Ready(engine.room, engine.counts(), vlm.prompts.tokens_per_image, str(vlm.device)))
        desk.serve(sys.stdin.buffer)
