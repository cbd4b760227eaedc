"""Gives a checkpoint tokens that point (`vision_lm.pointing`), for training on answers that do.

    python -m projector.points build/mini-mean --out build/mini-points [--grid 8]

The tokens take the rows of the embedding that are free, and new ones where there are too few. They begin as what the
projector adds to the patch in the same place, if it knows one for each: a cell then looks like its patch.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer
from torch import Tensor

from vision_lm.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from vision_lm.config import PointConfig
from vision_lm.errors import CheckpointError

GRID = 8
PLACE_GAIN = 0.15  # of what tells places apart at first: about as large as a projected patch
_ROWS = 64  # the embedding has a multiple of so many, which matrix products like
_EMBEDDING, _HEAD = "phi.model.embed_tokens.weight", ("phi.lm_head.weight", "phi.lm_head.bias")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", help="embedded name, folder or hub id")
    parser.add_argument("--out", type=Path, required=True, help="folder of the new checkpoint")
    parser.add_argument("--grid", type=int, default=GRID, help=f"cells a side ({GRID})")
    arguments = parser.parse_args()
    found = with_points(read_checkpoint(arguments.checkpoint), arguments.grid)
    write_checkpoint(arguments.out, found.config, found.tensors, found.tokenizer)


def with_points(checkpoint: Checkpoint, grid: int = GRID) -> Checkpoint:
    """The same checkpoint with grid x grid tokens more.

    Raises CheckpointError where it has such already, or sees no more than a part of some pictures.
    """
    config, prompt = checkpoint.config, checkpoint.config.prompt
    if prompt.points is not None:
        raise CheckpointError(
            f"{config.name}: its answers point already, on a grid of {prompt.points.grid}; train it as it is"
        )
    if grid < 1:
        raise CheckpointError(f"a grid of {grid} cells a side; give 1 or more")
    first = checkpoint.tokenizer.get_vocab_size(with_added_tokens=True)
    after = first + grid**2
    rows, image = config.text.vocab_size, prompt.image_token_id
    if first <= image < after:  # the placeholder of pictures makes room, and takes the last row
        rows, image = max(rows, after + 1), max(rows - 1, after)
    rows = math.ceil(max(rows, after) / _ROWS) * _ROWS
    pointing = dataclasses.replace(
        config,
        text=dataclasses.replace(config.text, vocab_size=rows),
        prompt=dataclasses.replace(prompt, image_token_id=image, points=PointConfig(first, grid)),
    )
    pointing.check(config.name)
    tokenizer = Tokenizer.from_str(checkpoint.tokenizer.to_str())
    tokenizer.add_special_tokens(
        [AddedToken(f"<|point {cell}|>", special=True, normalized=False) for cell in range(grid**2)]
    )
    tensors = dict(checkpoint.tensors)
    for name in (_EMBEDDING, *_HEAD):
        tensors[name] = _grown(tensors[name], rows)
    tensors[_EMBEDDING][first:after] = _begun(checkpoint, grid)
    for name in _HEAD:
        tensors[name][first:after] = 0
    return Checkpoint(pointing, tensors, tokenizer)


def places(side: int, width: int) -> Tensor:
    """Sines and cosines of row and column, (side * side, width): after Vaswani et al. 2017, in two dimensions."""
    # From a quarter turn a patch down to a fortieth.
    frequencies = math.pi / 2 * torch.logspace(0, -1, width // 4)  # (width / 4,)
    angles = torch.arange(side)[:, None] * frequencies  # (side, width / 4)
    one = torch.cat([angles.sin(), angles.cos()], dim=1)  # (side, width / 2)
    rows, columns = one[:, None].expand(-1, side, -1), one[None].expand(side, -1, -1)
    return torch.cat([rows, columns], dim=2).flatten(0, 1)


def _grown(tensor: Tensor, rows: int) -> Tensor:
    """A copy with so many rows (V, ...), the new ones 0."""
    grown = tensor.new_zeros((max(rows, len(tensor)), *tensor.shape[1:]))
    grown[: len(tensor)] = tensor
    return grown


def _begun(checkpoint: Checkpoint, grid: int) -> Tensor:
    """The first embeddings of the points' tokens (grid * grid, Dt)."""
    known = checkpoint.tensors.get("projector.positions")
    if known is not None and len(known) == grid**2:
        return known
    return PLACE_GAIN * places(grid, checkpoint.config.text.hidden_size)


if __name__ == "__main__":
    main()
