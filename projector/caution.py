"""Chooses how sure a checkpoint must be of a thing to name it in a caption.

    python -m projector.caution --model build/mini --data data [--true 0.96]

Training captions leave out names at random (projector/data/scene_captions.py), so that a caption says "a drawing" or "a
shape" where the name is not likely enough. How likely is enough moves with the output bias of these general words: the
least of a row of values with which, on the part of the held-out scenes that calibration may see, at least the share
`--true` of what captions name is there, in each length. `projector.calibrate` comes after it.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from projector.caption_truth import CaptionTruth, caption_truth
from projector.data.held_out import calibration_part
from projector.data.pictures import load_pictures
from projector.data.samples import iter_jsonl
from projector.output_bias import with_more_bias
from vision_lm.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from vision_lm.model import VisionLM
from vision_lm.prompts import CaptionLength

GENERAL = (" drawing", " shape", " shapes")  # a plural of drawings goes on with a token of its own
SHIFTS = (-3.0, -2.0, -1.5, -1.0, -0.75, -0.5, -0.25, 0.0, 0.25, 0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--model", type=Path, required=True, help="the checkpoint folder; its weights are rewritten"
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument(
        "--true", type=float, default=0.96, help="of what captions name, so much must be there (0.96)"
    )
    arguments = parser.parse_args()
    checkpoint = read_checkpoint(arguments.model)
    scenes = arguments.data / "corpus" / "held_out" / "scenes.jsonl"
    samples = calibration_part(list(iter_jsonl(scenes)))
    names = {picture.name for picture in load_pictures(arguments.data)}
    cautious = checkpoint
    for shift in SHIFTS:
        cautious = shifted(checkpoint, shift)
        found = caption_truth(VisionLM(cautious), samples, names)
        print(f"{shift:+.2f}  {told(found)}", flush=True)
        if all(one.true >= arguments.true for one in found.values()):
            break
    write_checkpoint(arguments.model, cautious.config, cautious.tensors, cautious.tokenizer)


def shifted(checkpoint: Checkpoint, shift: float) -> Checkpoint:
    """The same checkpoint with that much more bias for general words; each of them must be one token."""
    encoded = [checkpoint.tokenizer.encode(word, add_special_tokens=False).ids for word in GENERAL]
    return with_more_bias(checkpoint, [token for (token,) in encoded], shift)


def told(found: Mapping[CaptionLength, CaptionTruth]) -> str:
    return "   ".join(
        f"{length}: {one.named:,} named, {one.true:.1%} there; {one.recall:.1%} of what is there named"
        for length, one in found.items()
    )


if __name__ == "__main__":
    main()
