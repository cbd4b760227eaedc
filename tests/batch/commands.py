"""Runs `vision-lm` command lines, one a line of JSON on stdin, each in a process of its own that may be killed.

The imports, which take seconds, are done once: each command runs in a fork. No tensor is computed before, so there is
no thread that a fork could miss. Writes the process's id, and its status once it has ended.
"""

from __future__ import annotations

import json
import os
import resource
import sys

import open_clip  # noqa: F401

import vision_lm.batch.runner
from vision_lm.cli import main


def child(command: dict) -> None:
    """Its streams go to a file; `bytes` is the size that no file may exceed once the model is loaded."""
    log = os.open(command["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    sys.stdin = open(os.devnull)  # noqa: SIM115
    os.dup2(log, 1)
    os.dup2(log, 2)
    if command["bytes"]:
        load = vision_lm.load

        def load_and_limit(*arguments, **options):
            vlm = load(*arguments, **options)
            resource.setrlimit(resource.RLIMIT_FSIZE, (command["bytes"], command["bytes"]))
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
