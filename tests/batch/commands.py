"""Runs `vision-lm` command lines, one a line of JSON on stdin, each in a process of its own that may be killed.

The imports, which take seconds, are done once: each command runs in a fork. No tensor is computed before, so there is
no thread that a fork could miss. Writes the process's id, and its status once it has ended.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import open_clip  # noqa: F401

import vision_lm.batch.runner
from vision_lm.batch.writers import FORMATS, SidecarWriter
from vision_lm.cli import main


@contextmanager
def limited(size: int) -> Iterator[None]:
    """What the disk's being full comes to: no file may be longer than so many bytes."""
    before, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, most))


def limit_output(size: int) -> None:
    """The output alone, as if it lay on a disk of its own: without this the journal, which is longer, is hit first."""

    def within(method: Callable[..., Any]) -> Callable[..., Any]:
        def limited_method(*arguments: Any) -> Any:
            with limited(size):
                return method(*arguments)

        return limited_method

    for kind in {*FORMATS.values(), SidecarWriter}:
        for name in ("begin", "write", "finish"):
            setattr(kind, name, within(getattr(kind, name)))


def child(command: dict) -> None:
    """Its streams go to a file; the disk is full as `Commands.start` says."""
    log = os.open(command["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    sys.stdin = open(os.devnull)  # noqa: SIM115
    os.dup2(log, 1)
    os.dup2(log, 2)
    if command["output_bytes"]:
        limit_output(command["output_bytes"])
    if command["file_bytes"]:
        load = vision_lm.load

        def load_and_limit(*arguments, **options):
            vlm = load(*arguments, **options)
            resource.setrlimit(resource.RLIMIT_FSIZE, (command["file_bytes"], command["file_bytes"]))
            return vlm

        vision_lm.load = load_and_limit
    try:
        status = main(command["arguments"])
        sys.stdout.flush()
    except SystemExit as end:
        status = end.code
    os._exit(status)


for line in sys.stdin:
    process = os.fork()
    if not process:
        child(json.loads(line))
    print(process, flush=True)
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    print(status, flush=True)
