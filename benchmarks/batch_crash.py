"""`vision-lm batch` killed again and again: afterwards its rows must be those of a run that nobody disturbed.

    python benchmarks/batch_crash.py [--pictures 5000] [--kills 10] [--seed 0]

Draws pictures, one in fifty corrupt, runs the command once undisturbed, then again with SIGKILL at random moments (some
while it starts, most while it works), and compares row for row: all but times, confidences to 0.001. Prints when each
kill came and a line of JSON; the exit status is 1 if a row is missing, double or different.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from batch_rate import draw

from vision_lm.bench.machine import Machine

AT_START = 0.2  # of the kills: before the first row


def command(pictures: Path, out: Path) -> subprocess.Popen[bytes]:
    arguments = [
        sys.executable,
        "-m",
        "vision_lm",
        "batch",
        str(pictures),
        "--caption",
        "normal",
        "--out",
        str(out),
    ]
    return subprocess.Popen(arguments, stdout=subprocess.DEVNULL)


def undisturbed(pictures: Path, out: Path) -> tuple[float, float]:
    """Seconds until it works, and of its work."""
    start, partial = time.perf_counter(), out.with_name(out.name + ".partial")
    process = command(pictures, out)
    while not partial.exists() and process.poll() is None:
        time.sleep(0.01)
    begun = time.perf_counter()
    process.wait()
    return begun - start, time.perf_counter() - begun


def kill_once(
    pictures: Path, out: Path, starting: float, working: float, chance: random.Random
) -> tuple[bool, int]:
    """Whether it was still running, and how many rows of its output were written."""
    partial = out.with_name(out.name + ".partial")
    partial.unlink(missing_ok=True)
    process = command(pictures, out)
    if chance.random() < AT_START:
        time.sleep(chance.uniform(0, starting))
    else:
        while not partial.exists() and process.poll() is None:
            time.sleep(0.01)
        time.sleep(chance.uniform(0, working))
    running = process.poll() is None
    process.kill()
    process.wait()
    return running, len(partial.read_bytes().splitlines()) if partial.exists() else 0


def different(row: dict[str, Any], other: dict[str, Any]) -> bool:
    for key, value in row.items():
        if key.endswith("_confidence") and value is not None and other[key] is not None:
            if abs(value - other[key]) > 1e-3:
                return True
        elif not key.endswith("_seconds") and value != other[key]:
            return True
    return False


def read(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pictures", type=int, default=5000)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chance, killed = random.Random(options.seed), 0
    with tempfile.TemporaryDirectory() as folder:
        pictures, whole, out = (Path(folder) / name for name in ("pictures", "whole.jsonl", "out.jsonl"))
        draw(pictures, options.pictures)
        starting, working = undisturbed(pictures, whole)
        print(f"undisturbed: {starting:.1f} s to start, {working:.1f} s of work")
        for kill in range(1, options.kills + 1):
            running, rows = kill_once(pictures, out, starting, 1.6 * working / max(options.kills, 1), chance)
            killed += running
            print(f"kill {kill}: {'with' if running else 'too late:'} {rows} rows written", flush=True)
        command(pictures, out).wait()
        expected, found = read(whole), read(out)
    differing = sum(different(*pair) for pair in zip(expected, found, strict=False))
    images = [row["image"] for row in found]
    figures = {
        "pictures": options.pictures,
        "kills": killed,
        "rows": len(found),
        "missing": len({row["image"] for row in expected} - set(images)),
        "double": len(images) - len(set(images)),
        "different": differing,
        "failed_rows": sum(row["error"] is not None for row in found),
        "machine": asdict(Machine.of(torch.device("cpu"))),
    }
    good = (
        len(found) == options.pictures and not figures["missing"] and not figures["double"] and not differing
    )
    print(f"{killed} kills: {len(found)} rows, {differing} different: {'equal' if good else 'NOT EQUAL'}")
    print(json.dumps(figures))
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
