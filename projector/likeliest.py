"""Gives a checkpoint tokens of the likeliest nouns (`ProjectorConfig.likeliest`), for training with them.

    python -m projector.likeliest build/mini-mean --out build/mini-ranked [--count 2]

They need no weights of their own: each is the token of all evidence, of which only one noun's classes are left.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import torch
from torch import Tensor

from projector.data.imagenet_names import CLASSES
from vision_lm.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from vision_lm.errors import CheckpointError

COUNT = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", help="embedded name, folder or hub id")
    parser.add_argument("--out", type=Path, required=True, help="folder of the new checkpoint")
    parser.add_argument("--count", type=int, default=COUNT, help=f"nouns with a token each ({COUNT})")
    arguments = parser.parse_args()
    found = with_likeliest(read_checkpoint(arguments.checkpoint), arguments.count)
    write_checkpoint(arguments.out, found.config, found.tensors, found.tokenizer)


def with_likeliest(checkpoint: Checkpoint, count: int = COUNT) -> Checkpoint:
    """The same checkpoint with `count` tokens more for every picture.

    Raises CheckpointError where it has such already, or its pooled tokens are not ImageNet's class logits.
    """
    config = checkpoint.config
    if config.projector.likeliest:
        raise CheckpointError(
            f"{config.name}: has tokens of {config.projector.likeliest} nouns already; train it as it is"
        )
    if count < 1:
        raise CheckpointError(f"tokens of {count} nouns; give 1 or more")
    if config.projector.pooled_features != len(CLASSES):
        raise CheckpointError(
            f"{config.name}: pooled tokens of {config.projector.pooled_features} values, allowed: the "
            f"{len(CLASSES)} logits of ImageNet's classes"
        )
    ranked = dataclasses.replace(config, projector=dataclasses.replace(config.projector, likeliest=count))
    ranked.check(config.name)
    return Checkpoint(ranked, checkpoint.tensors | {"projector.nouns": first_of_noun()}, checkpoint.tokenizer)


def first_of_noun() -> Tensor:
    """For each of ImageNet's classes the first one with the same everyday noun (1000,)."""
    first: dict[str, int] = {}
    return torch.tensor([first.setdefault(entry.basic, entry.index) for entry in CLASSES])


if __name__ == "__main__":
    main()
