"""Weights between those of two checkpoints."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from projector.average import average
from tests.conftest import VIT, random_checkpoint, text_config
from vision_lm.errors import CheckpointError


def test_the_mean_lies_between_and_its_ends_are_the_two() -> None:
    first = random_checkpoint(VIT)
    second = dataclasses.replace(first, tensors={name: 2 * one for name, one in first.tensors.items()})
    for share, factor in ((0.0, 1.0), (0.5, 1.5), (1.0, 2.0)):
        found = average(first, second, share).tensors
        assert found.keys() == first.tensors.keys()
        for name, tensor in first.tensors.items():
            expected = factor * tensor if tensor.is_floating_point() else 2 * tensor
            torch.testing.assert_close(found[name], expected)


def test_the_first_ones_words_can_be_kept() -> None:
    """Its embeddings and its head, and nothing else."""
    first = random_checkpoint(VIT)
    second = dataclasses.replace(first, tensors={name: 2 * one for name, one in first.tensors.items()})
    found = average(first, second, 1.0, keep_words=True).tensors
    words = {
        name for name, tensor in first.tensors.items() if torch.equal(found[name], tensor) and tensor.any()
    }
    assert words == {"phi.model.embed_tokens.weight", "phi.lm_head.weight", "phi.lm_head.bias"}


def test_two_architectures_have_no_mean() -> None:
    other = random_checkpoint(VIT, text_config(hidden_size=128))
    with pytest.raises(CheckpointError, match="average two of one architecture"):
        average(random_checkpoint(VIT), other, 0.5)
