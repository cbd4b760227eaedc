"""The likeliest nouns of class evidence have tokens of their own, in their order."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from projector.data.imagenet_names import CLASSES
from projector.likeliest import first_of_noun, with_likeliest
from projector.module import Projector
from tests.conftest import TRUNK, random_checkpoint
from vision_lm.checkpoint import Checkpoint, expected_tensors, write_checkpoint
from vision_lm.errors import CheckpointError
from vision_lm.model import VisionLM


def projector(likeliest: int) -> Projector:
    torch.manual_seed(4)
    found = Projector(8, 16, 12, pooled_features=1000, pooled_softmax=True, likeliest=likeliest)
    if likeliest:
        found.nouns.copy_(first_of_noun())
    return found.eval().requires_grad_(False)


def index(noun: str) -> int:
    return next(one.index for one in CLASSES if one.noun == noun)


def test_a_noun_is_as_likely_as_its_classes_together() -> None:
    """A missile and a projectile, both a rocket, come before an oil rig that is likelier than either.

    The oracle adds the classes up by what `imagenet_names.tsv` calls them, in float64, and gives the pooled MLP each noun's
    own as if nothing else were possible.
    """
    ranked = projector(2)
    likely = {"missile": 0.22, "projectile": 0.17, "oil rig": 0.3, "tabby cat": 0.02}
    probabilities = np.full(1000, (1 - sum(likely.values())) / 996)
    for noun, p in likely.items():
        probabilities[index(noun)] = p
    sums: dict[str, float] = {}
    for one, p in zip(CLASSES, probabilities, strict=True):
        sums[one.basic] = sums.get(one.basic, 0.0) + p
    order = sorted(sums, key=lambda noun: -sums[noun])[:2]
    assert order == ["rocket", CLASSES[index("oil rig")].basic]
    logits = torch.from_numpy(np.log(probabilities)).float() + 3.0  # a softmax knows no constant
    tokens = ranked(torch.zeros(1, 5, 8), logits[None, None])  # (1, 2 + 1 + 5, 12)
    assert tokens.shape == (1, 8, 12)
    own = [
        [p / sums[noun] if one.basic == noun else 0.0 for one, p in zip(CLASSES, probabilities, strict=True)]
        for noun in order
    ]
    expected = ranked.pooled(torch.tensor([*own, probabilities.tolist()], dtype=torch.float32))
    torch.testing.assert_close(tokens[0, :3], expected, rtol=1e-5, atol=1e-6)


def test_a_noun_that_is_certain_leaves_the_next_none() -> None:
    """No division by nothing."""
    ranked = projector(2)
    logits = torch.full((1, 1, 1000), -500.0)
    logits[..., index("missile")] = 500.0
    tokens = ranked(torch.zeros(1, 5, 8), logits)
    torch.testing.assert_close(tokens[0, 1], ranked.pooled(torch.zeros(1000)))


def test_the_tokens_of_before_follow_unchanged() -> None:
    patches, logits = torch.randn(3, 5, 8), torch.randn(3, 2, 1000)
    before, ranked = projector(0)(patches, logits), projector(2)(patches, logits)
    assert torch.equal(ranked[:, 2:], before)


def test_a_checkpoint_gets_them_once() -> None:
    """Two tokens more for every picture, and no weights; a second time, or without ImageNet's classes, it is refused."""
    wide = random_checkpoint(dataclasses.replace(TRUNK, embed_dim=1000))
    ranked = with_likeliest(wide)
    tokens = [VisionLM(one, device="cpu").prompts.tokens_per_image for one in (wide, ranked)]
    assert tokens[1] == tokens[0] + 2
    assert expected_tensors(ranked.config).keys() - wide.tensors.keys() == {"projector.nouns"}
    with pytest.raises(CheckpointError, match="has tokens of 2 nouns already"):
        with_likeliest(ranked)
    with pytest.raises(CheckpointError, match="tokens of 0 nouns; give 1 or more"):
        with_likeliest(wide, 0)


def test_other_classes_have_no_nouns(trunk_checkpoint: Checkpoint) -> None:
    with pytest.raises(CheckpointError, match="pooled tokens of 10 values, allowed: the 1000 logits"):
        with_likeliest(trunk_checkpoint)


@pytest.mark.parametrize(
    ("nouns", "message"),
    [
        (torch.full((1000,), 1000), r"not all the number of a class: projector.nouns \(torch.int64\)"),
        (torch.zeros(1000), r"not all the number of a class: projector.nouns \(torch.float32\)"),
    ],
)
def test_nouns_that_are_none_of_the_classes_are_refused(
    nouns: torch.Tensor, message: str, tmp_path: Path
) -> None:
    """Before any picture, not as an index that is out of range."""
    ranked = with_likeliest(random_checkpoint(dataclasses.replace(TRUNK, embed_dim=1000)))
    with pytest.raises(CheckpointError, match=message):
        write_checkpoint(
            tmp_path / "out", ranked.config, ranked.tensors | {"projector.nouns": nouns}, ranked.tokenizer
        )
