"""`vision-lm batch` in processes that may be killed, or whose disk may be full."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path


class Commands:
    """`vision-lm` in processes of its own; see commands.py."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "log.txt"
        root = Path(__file__).parents[2]
        command = [sys.executable, str(Path(__file__).with_name("commands.py"))]
        environment = os.environ | {"PYTHONPATH": str(root)}
        self.server = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def start(self, *arguments: object, file_bytes: int = 0, output_bytes: int = 0) -> int:
        """`file_bytes`: that no file may exceed once the model is loaded; `output_bytes`: none of the output's."""
        assert self.server.stdin and self.server.stdout
        command: dict[str, object] = {"arguments": list(map(str, arguments)), "log": str(self.log)}
        command |= {"file_bytes": file_bytes, "output_bytes": output_bytes}
        print(json.dumps(command), file=self.server.stdin, flush=True)
        return int(self.server.stdout.readline())

    def finish(self) -> int:
        assert self.server.stdout
        return int(self.server.stdout.readline())

    def run(self, *arguments: object, file_bytes: int = 0, output_bytes: int = 0) -> tuple[int, str]:
        """The exit status, and everything that was printed."""
        self.start(*arguments, file_bytes=file_bytes, output_bytes=output_bytes)
        return self.finish(), self.log.read_text()


def batch(folder: Path, out: Path) -> list[object]:
    return ["batch", folder, "--caption", "normal", "--out", out, "--device", "cpu"]


def lines(path: Path) -> int:
    return len(path.read_bytes().splitlines()) if path.exists() else 0


def wait_until(condition: Callable[[], bool], process: int) -> bool:
    """Whether it came true while the process ran."""
    while not condition():
        if not Path(f"/proc/{process}").exists():
            return False
        time.sleep(0.005)
    return True
