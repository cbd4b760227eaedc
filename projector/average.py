"""The mean of two checkpoints' weights, the second one trained on from the first.

    python -m projector.average build/mini-naming build/mini-unsure --out build/mini-mean

Between the ends of two runs from one another lie weights that often do better than either (Wortsman et al. 2022, arXiv
2203.05482), and cost nothing more to use. The config and the tokenizer are the second one's.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from vision_lm.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from vision_lm.errors import CheckpointError

WORDS = ("phi.model.embed_tokens.", "phi.lm_head.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("first", help="embedded name, folder or hub id")
    parser.add_argument("second", help="the same")
    parser.add_argument("--out", type=Path, required=True, help="folder of the new checkpoint")
    parser.add_argument("--share", type=float, default=0.5, help="of the second one (0.5)")
    parser.add_argument(
        "--keep-words", action="store_true", help="of the first one: its embeddings and its head"
    )
    arguments = parser.parse_args()
    found = average(
        read_checkpoint(arguments.first),
        read_checkpoint(arguments.second),
        arguments.share,
        keep_words=arguments.keep_words,
    )
    write_checkpoint(arguments.out, found.config, found.tensors, found.tokenizer)


def average(first: Checkpoint, second: Checkpoint, share: float, *, keep_words: bool = False) -> Checkpoint:
    """(1 - share) times the first and share times the second, in the second one's dtype. Raises CheckpointError.

    `keep_words`: embeddings and head are the first one's. What a run was shown much of, its head says more readily; of a
    short run with a mixture of its own, this is not wanted.
    """
    shapes = [{name: tensor.shape for name, tensor in one.tensors.items()} for one in (first, second)]
    if shapes[0] != shapes[1]:
        raise CheckpointError(
            "the two checkpoints have other tensors or shapes; average two of one architecture"
        )
    tensors = {}
    for name, tensor in second.tensors.items():
        if keep_words and name.startswith(WORDS):
            tensors[name] = first.tensors[name].to(tensor.dtype)
            continue
        # By way of the difference: a frozen tower stays what it is, to the last bit, and so do its cached features.
        change = tensor.float() - first.tensors[name].float()
        mean = tensor.float() - (1 - share) * change
        tensors[name] = mean.to(tensor.dtype) if tensor.is_floating_point() else tensor
    return dataclasses.replace(second, tensors=tensors)


if __name__ == "__main__":
    main()
