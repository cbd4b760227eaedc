"""Chooses how readily a checkpoint says that a question has no answer in the picture.

    python -m projector.unanswerable --model build/mini --data data [--share 0.92]

In a mean of weights (`projector.average`) a word that only some of them know is said too rarely. The least of a row of
values for the output bias of its first token with which, on the part of the held-out questions that calibration may see,
at least so large a share of those about absent things is answered by it. `projector.calibrate` comes after it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from projector.data.held_out import calibration_part
from projector.data.samples import QA, iter_jsonl
from projector.output_bias import with_more_bias
from vision_lm.answer import Answer
from vision_lm.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from vision_lm.confidence import UNANSWERABLE
from vision_lm.model import VisionLM

SHIFTS = (0.0, 0.6, 1.2, 1.8, 2.4, 3.0, 3.6, 4.2, 4.8)
FILES = ("absent.jsonl", "reasoning.jsonl", "naming.jsonl")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--model", type=Path, required=True, help="the checkpoint folder; its weights are rewritten"
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument(
        "--share", type=float, default=0.92, help="of questions about absent things, answered so (0.92)"
    )
    arguments = parser.parse_args()
    checkpoint = read_checkpoint(arguments.model)
    asked = [
        (sample.images[0], turn)
        for name in FILES
        for sample in calibration_part(list(iter_jsonl(arguments.data / "corpus" / "held_out" / name)))
        for turn in sample.turns
        if turn.kind != "caption"
    ]
    readier = checkpoint
    for shift in SHIFTS:
        readier = shifted(checkpoint, shift)
        said, falsely = shares(VisionLM(readier), asked)
        print(f"{shift:+.1f}  of absent things {said:.1%}, of others {falsely:.2%}", flush=True)
        if said >= arguments.share:
            break
    write_checkpoint(arguments.model, readier.config, readier.tensors, readier.tokenizer)


def shifted(checkpoint: Checkpoint, shift: float) -> Checkpoint:
    """The same checkpoint with that much more bias for the word's first token."""
    first, *_ = checkpoint.tokenizer.encode(UNANSWERABLE, add_special_tokens=False).ids
    return with_more_bias(checkpoint, [first], shift)


def shares(vlm: VisionLM, asked: list[tuple[Path, QA]]) -> tuple[float, float]:
    """Of the questions that have no answer, and of the others, those answered so."""
    replies = vlm.ask([image for image, _ in asked], [turn.question for _, turn in asked])
    so = np.array([isinstance(one, Answer) and one.text == UNANSWERABLE for one in replies])
    absent = np.array([turn.answer == UNANSWERABLE for _, turn in asked])
    return float(so[absent].mean()), float(so[~absent].mean())


if __name__ == "__main__":
    main()
