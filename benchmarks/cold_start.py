"""Cold start: a whole `vision-lm caption IMAGE` beside what nobody can go below, `import torch, open_clip`.

    python benchmarks/cold_start.py [--image demo/examples/cat.jpg] [--model mini] [--runs 5]

Both are new processes, run in turn so that a busy machine slows both; one run of each first fills the disk cache.
Prints a table and a line of JSON: seconds, and the ratio of the medians (the goal is at most 1.5).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time

GOAL = 1.5


def seconds(command: list[str]) -> float:
    """Wall time of one process that must succeed."""
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--image", default="demo/examples/cat.jpg")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()

    commands = {
        "import torch, open_clip": [sys.executable, "-c", "import torch, open_clip"],
        "vision-lm caption": [
            sys.executable,
            "-m",
            "vision_lm",
            "caption",
            options.image,
            "--model",
            options.model,
        ],
    }
    for command in commands.values():
        seconds(command)
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(options.runs):
        for name, command in commands.items():
            times[name].append(seconds(command))

    medians = {name: statistics.median(values) for name, values in times.items()}
    baseline, caption = medians.values()
    print(f"{'':<26}{'median s':>9}{'min s':>9}{'max s':>9}")
    for name, values in times.items():
        print(f"{name:<26}{medians[name]:>9.2f}{min(values):>9.2f}{max(values):>9.2f}")
    ratio = caption / baseline
    print(f"{'ratio':<26}{ratio:>9.2f}   {'meets' if ratio <= GOAL else 'MISSES'} the goal of {GOAL}")
    print(json.dumps({"seconds": times, "median": medians, "ratio": ratio}))


if __name__ == "__main__":
    main()
