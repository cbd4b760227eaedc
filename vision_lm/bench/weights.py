"""Random weights of a true layout, whose greedy answers neither end nor repeat themselves.

What a model costs does not depend on the values of its weights, but how long it goes on does: a trained one ends its
answer, and a random one is soon caught in a loop. These weights count: after the token t the likeliest is t + 1, in
any dtype, so every answer has as many tokens as are asked for, and whoever computes another has made a mistake.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor

from vision_lm.checkpoint import Checkpoint, expected_tensors
from vision_lm.config import Config, TextConfig
from vision_lm.engine.device import DTYPES
from vision_lm.skeleton import CLASSES, phi_shapes

RING = 1_048_573  # values drawn; odd, so that the rows of a matrix, whose widths are even, all differ
SPREAD = 0.02  # standard deviation of a weight


class Noise:
    """Normal values that are drawn once and read in a ring: to draw billions would take a minute."""

    def __init__(self, dtype: torch.dtype, seed: int = 0) -> None:
        self._ring = torch.randn(RING, generator=torch.Generator().manual_seed(seed)).to(dtype)
        self._at = 0

    def tensor(self, shape: torch.Size, spread: float) -> Tensor:
        """The next values, with this standard deviation."""
        values = torch.empty(shape, dtype=self._ring.dtype)
        rest = values.view(-1)
        while len(rest):
            part = self._ring[self._at : self._at + len(rest)]
            torch.mul(part, spread, out=rest[: len(part)])
            self._at = (self._at + len(part)) % RING
            rest = rest[len(part) :]
        return values


def random_checkpoint(config: Config) -> Checkpoint:
    """A whole checkpoint of random weights, and a tokenizer of as many made-up words as the rows allow."""
    noise = Noise(DTYPES[config.dtype])
    shapes = expected_tensors(config)
    tensors = {name: _fresh(name, shapes[name], noise) for name in shapes if not name.startswith("phi.")}
    return counting(Checkpoint(config, tensors, made_up_tokenizer(config)))


def counting(checkpoint: Checkpoint) -> Checkpoint:
    """The same with a language model that counts; the old one's tensors are not read."""
    config = checkpoint.config
    phi = {f"phi.{name}": tensor for name, tensor in counting_phi(config.text, DTYPES[config.dtype]).items()}
    return dataclasses.replace(checkpoint, tensors=checkpoint.tensors | phi)


def counting_phi(config: TextConfig, dtype: torch.dtype) -> dict[str, Tensor]:
    """PhiForCausalLM's state dict with weights that count."""
    noise = Noise(dtype)
    tensors = {name: _fresh(name, shape, noise) for name, shape in phi_shapes(config).items()}
    # A token's embedding outweighs what all layers together add to it, and its successor's row of the head is that
    # embedding again.
    embedding = noise.tensor(tensors["model.embed_tokens.weight"].shape, 1.0)  # (V, Dt)
    tensors["model.embed_tokens.weight"] = embedding
    tensors["lm_head.weight"] = embedding.roll(1, dims=0).mul_(SPREAD)
    for name, tensor in tensors.items():
        if name.endswith(("dense.weight", "fc2.weight")):
            tensor.mul_(1 / math.sqrt(2 * config.num_hidden_layers))
    return tensors


def _fresh(name: str, shape: torch.Size, noise: Noise) -> Tensor:
    """A tensor of random values; scales and variances are 1, so that numbers stay of a size."""
    if not shape:  # the count of a batch norm
        return torch.zeros((), dtype=torch.int64)
    if name in CLASSES:  # each of a noun of its own
        return torch.arange(shape[0])
    if len(shape) == 1 and name.endswith(("weight", "running_var", "spread")):
        return noise.tensor(shape, 0.0).add_(1.0)
    return noise.tensor(shape, SPREAD)


def made_up_tokenizer(config: Config) -> Tokenizer:
    """Words w0, w1, ... up to the row that marks a picture's place."""
    end = config.prompt.eos_token_id
    words = {f"w{number}": number for number in range(config.prompt.image_token_id) if number != end}
    tokenizer = Tokenizer(models.WordLevel(words | {"<|endoftext|>": end}, unk_token=next(iter(words))))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer
