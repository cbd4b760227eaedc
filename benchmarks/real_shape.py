"""The real shape on a CPU: phi-1.5 and ViT-L/14 at 336 pixels, random bfloat16 weights, one short caption.

    python benchmarks/real_shape.py [--image demo/examples/cat.jpg] [--tokens 24] [--threads 2] [--folder DIR]

Weights of that shape are written as a checkpoint (3.5 GB, in a temporary folder unless one is given) by another
process; this one loads it as any user would. Prints a table and a line of JSON: seconds of each stage, and the peak
of resident memory, which must stay within 12 GiB. What the caption says means nothing.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from pathlib import Path

import torch
from PIL import Image, ImageOps

from vision_lm.bench.machine import peak_resident_bytes
from vision_lm.bench.shapes import shape_config
from vision_lm.bench.weights import random_checkpoint
from vision_lm.checkpoint import write_checkpoint
from vision_lm.model import VisionLM

LIMIT_GIB = 12


def write_random(folder: str) -> None:
    """A checkpoint of random weights, and a tokenizer of as many made-up words as Phi's has tokens."""
    checkpoint = random_checkpoint(shape_config("phi-1_5"))
    write_checkpoint(folder, checkpoint.config, checkpoint.tensors, checkpoint.tokenizer)


def measure(folder: str, image: str, tokens: int) -> dict[str, float]:
    """Seconds of each stage, and the peak of resident memory in GiB."""
    clock = [time.perf_counter()]

    def lap() -> float:
        clock.append(time.perf_counter())
        return clock[-1] - clock[-2]

    vlm = VisionLM.from_pretrained(folder, "cpu", "bfloat16")
    seconds = {"load": lap()}
    answer = vlm.caption(image, "short", max_tokens=tokens)
    seconds["caption, whole"] = lap()
    print(f"{len(answer.tokens)} tokens, stopped by {answer.finish_reason}: {answer.text[:60]} ...")

    # The same again, stage by stage, with a picture that is not in the cache.
    other = ImageOps.mirror(Image.open(image))
    lap()
    vlm.encode_images([other])
    seconds["encode"] = lap()
    steps = [lap() for _ in vlm.stream(other, vlm.prompts.caption_question("short"), max_tokens=tokens)]
    seconds["prefill"] = steps.pop(0)
    seconds["a token"] = statistics.median(steps)
    seconds["peak GiB"] = peak_resident_bytes() / 2**30
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--image", default="demo/examples/cat.jpg")
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", help="where the checkpoint is, or is to be kept")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or temporary
        if not Path(folder, "config.json").exists():
            # In another process, so that this one's peak is that of loading and captioning alone.
            writer = multiprocessing.get_context("spawn").Process(target=write_random, args=(folder,))
            writer.start()
            writer.join()
        figures = measure(folder, options.image, options.tokens)
    for name, value in figures.items():
        print(f"{name:<18}{value:>9.2f}{'' if name == 'peak GiB' else ' s'}")
    print(
        f"{'memory':<18}{'within' if figures['peak GiB'] <= LIMIT_GIB else 'OVER'} the limit of {LIMIT_GIB} GiB"
    )
    print(json.dumps({"threads": options.threads, "tokens": options.tokens, **figures}))


if __name__ == "__main__":
    main()
