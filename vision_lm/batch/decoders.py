"""The worker processes that open pictures, as the run sees them: jobs in, opened pictures out.

Each is a fresh interpreter (no fork of a process whose threads compute, and no import of the caller's script) that
has one picture at a time. So when one dies or hangs, its picture is known, and only that one is lost.
"""

from __future__ import annotations

import contextlib
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import vision_lm
from vision_lm.batch.opening import Job, Opened, Opening
from vision_lm.frames import receive, send

# -P: nothing is imported from the current folder.
START = "import sys; sys.path.append(sys.argv[1]); from vision_lm.batch.worker import main; main()"
LAST_SECONDS = 5  # for a worker whose pipe has closed
COMMAND = [sys.executable, "-P", "-c", START, str(Path(vision_lm.__file__).parents[1])]


class Decoders:
    """A pool of workers. `deliver` is called with each job's number and what became of it, in threads of the pool.

    What it delivers is an error only where no worker can be started.
    """

    def __init__(
        self,
        opening: Opening,
        workers: int,
        timeout: float,
        deliver: Callable[[int, Opened | Exception], None],
    ) -> None:
        self._opening, self._timeout, self._deliver = opening, timeout, deliver
        self._jobs: queue.SimpleQueue[tuple[int, Job] | None] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._processes: set[subprocess.Popen[bytes]] = set()
        self._threads = [
            threading.Thread(target=self._serve, name=f"picture worker {n}", daemon=True)
            for n in range(workers)
        ]

    def __enter__(self) -> Decoders:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """What is not opened yet never is."""
        self._closing.set()
        for _ in self._threads:
            self._jobs.put(None)
        for process in list(self._processes):
            process.kill()
        for thread in self._threads:
            thread.join()

    def submit(self, number: int, job: Job) -> None:
        self._jobs.put((number, job))

    def _serve(self) -> None:
        """One worker, replaced whenever it ends."""
        process: subprocess.Popen[bytes] | None = None
        while (one := self._jobs.get()) is not None and not self._closing.is_set():
            number, job = one
            opened: Opened | Exception
            try:
                process = process or self._start()
            except OSError as error:
                self._deliver(number, error)
                continue
            try:
                opened = self._open(process, job)
            except Exception:  # whatever it is, this thread must go on: its pictures are waited for
                opened = self._lost(process, job)
                process = None
            if not self._closing.is_set():
                self._deliver(number, opened)
        if process is not None:
            self._end(process)

    def _start(self) -> subprocess.Popen[bytes]:
        # Its arithmetic libraries need no threads: there are as many workers as are to compute.
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        process = subprocess.Popen(
            COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | threads
        )
        self._processes.add(process)
        if self._closing.is_set():
            process.kill()
        assert process.stdin is not None
        send(process.stdin, self._opening)
        return process

    def _open(self, process: subprocess.Popen[bytes], job: Job) -> Opened:
        assert process.stdin is not None and process.stdout is not None
        watchdog = threading.Timer(self._timeout, process.kill)
        watchdog.daemon = True
        watchdog.start()
        try:
            send(process.stdin, job)
            opened: Opened = receive(process.stdout)
        finally:
            watchdog.cancel()
        return opened

    def _lost(self, process: subprocess.Popen[bytes], job: Job) -> Opened:
        """The picture whose worker ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(LAST_SECONDS)  # for its own status
        status = self._end(process)
        how = f"signal {-status}" if status < 0 else f"status {status}"
        return Opened(
            cause="WorkerError",
            error=f"{job.item.image}: the process that opened it ended with {how}, for lack of memory or after "
            f"{self._timeout:g} s; scale the picture down",
        )

    def _end(self, process: subprocess.Popen[bytes]) -> int:
        process.kill()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # what it was never told
                    pipe.close()
        self._processes.discard(process)
        return process.wait()
