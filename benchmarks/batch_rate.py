"""`vision-lm batch` against a plain loop over `vlm.caption`: pictures a second, and how much of the cores is in use.

    python benchmarks/batch_rate.py [--pictures 5000] [--loop 200] [--threads N] [--workers N] [--out rate.json]

Draws the pictures, one in fifty of them corrupt. Half of the loop runs before the batch and half after, all in one
process, so that a machine whose speed drifts is fair to both; the loop has all of torch's threads. The captions of
both must be the same. CPU use is the processor time of the run and its workers over what the cores could give. Prints
a line of figures and a line of JSON; the exit status is 1 if a caption differs.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import torch
from PIL import Image, ImageDraw

import vision_lm
from vision_lm.batch import Settings, run
from vision_lm.batch.runner import torch_threads
from vision_lm.batch.settings import available_cores
from vision_lm.bench.machine import Machine
from vision_lm.model import VisionLM

COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "black", "white", "gray", "pink")
CORRUPT_EVERY = 50


def draw(folder: Path, pictures: int) -> list[Path]:
    """JPEG pictures of 640 x 480, each with a few shapes; one in fifty is cut in half. Those of the whole ones."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = []
    for number in range(pictures):
        chance = random.Random(number)
        path = folder / f"{number:06}.jpg"
        image = Image.new("RGB", (640, 480), chance.choice(COLOURS))
        pen = ImageDraw.Draw(image)
        for _ in range(chance.randint(1, 5)):
            x, y, side = chance.randint(0, 560), chance.randint(0, 400), chance.randint(60, 200)
            shape = chance.choice((pen.ellipse, pen.rectangle))
            shape((x, y, x + side, y + side), fill=chance.choice(COLOURS))
        image.save(path, quality=90)
        if number % CORRUPT_EVERY == CORRUPT_EVERY - 1:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        else:
            whole.append(path)
    return whole


def loop(vlm: VisionLM, paths: list[Path], length: str) -> tuple[dict[str, str], float]:
    """Captions by path, one call after the other, and the seconds."""
    start = time.perf_counter()
    captions = {str(path): vlm.caption(path, length).text for path in paths}  # type: ignore[call-overload]
    return captions, time.perf_counter() - start


def processor_seconds() -> float:
    """Of this process and of those that it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pictures", type=int, default=5000)
    parser.add_argument("--loop", type=int, default=200, help="pictures of the plain loop")
    parser.add_argument("--length", choices=("short", "normal", "long"), default="normal")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, help="of torch, in the batch (default: what batch takes)")
    parser.add_argument("--workers", type=int, default=available_cores())
    parser.add_argument("--out", type=Path, help="write the figures to this file, too")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        paths = draw(Path(folder) / "pictures", options.pictures)[: options.loop]
        vlm = vision_lm.load(options.model, options.device)
        loop(vlm, paths[:5], options.length)  # warm
        half = len(paths) // 2
        captions, seconds = loop(vlm, paths[:half], options.length)
        settings = Settings(
            (f"{folder}/pictures",),
            Path(folder) / "rows.jsonl",
            caption=options.length,
            workers=options.workers,
        )
        with torch_threads(options.threads):  # as the command has it, but for the seconds that loading takes
            threads = torch.get_num_threads()
            batch_vlm = vision_lm.load(options.model, options.device)
            before = processor_seconds(), time.perf_counter()
            summary = run(settings, batch_vlm)
            processor, whole = processor_seconds() - before[0], time.perf_counter() - before[1]
        more, more_seconds = loop(vlm, paths[half:], options.length)
        captions |= more
        with settings.out.open(encoding="utf-8") as file:
            rows = {row["image"]: row["caption"] for row in map(json.loads, file)}
    differing = sum(rows[path] != caption for path, caption in captions.items())
    loop_rate = len(captions) / (seconds + more_seconds)
    figures = {
        "pictures": summary.pictures,
        "answered": summary.answered,
        "failed": summary.failed,
        "batch_per_second": round(summary.rate, 2),
        "loop_per_second": round(loop_rate, 2),
        "ratio": round(summary.rate / loop_rate, 2),
        "cpu_use": round(processor / (whole * available_cores()), 3),
        "whole_seconds": round(whole, 1),
        "captions_that_differ": differing,
        "threads": threads,
        "workers": options.workers,
        "machine": asdict(Machine.of(vlm.device)),
    }
    print(
        f"batch {summary.rate:.1f} pictures/s, loop {loop_rate:.1f}: {figures['ratio']} times; "
        f"{figures['cpu_use']:.0%} of {available_cores()} cores; {differing} of {len(captions)} captions differ"
    )
    print(json.dumps(figures))
    if options.out:
        options.out.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    sys.exit(1 if differing else 0)


if __name__ == "__main__":
    main()
