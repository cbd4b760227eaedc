"""A worker process: it opens the pictures that stdin names, one by one, until stdin ends."""

from __future__ import annotations

import contextlib
import os
import signal
import sys

from vision_lm.batch.opening import Opener
from vision_lm.frames import receive, send


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the run, which then closes the pipe
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not get between the answers
    with contextlib.suppress(EOFError, BrokenPipeError):  # the run is over, or was killed
        opener = Opener(receive(sys.stdin.buffer))
        while True:
            send(answers, opener.open(receive(sys.stdin.buffer)))
