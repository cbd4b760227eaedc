"""Synthetic class evidence: what is said is true of the logits that are lent, and their noise is a real tower's."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from projector.data.evidence import EvidenceLender, lend_all
from projector.data.imagenet_names import CLASSES
from projector.data.photo_facts import photo_facts, subject_of
from projector.data.samples import QA, Sample
from vision_lm.config import PromptConfig
from vision_lm.encoder import Features, subject

VIEWS = ("subject", "all", "centre")
PICTURES = 6


@pytest.fixture(scope="module")
def lender() -> EvidenceLender:
    rows = torch.randn(len(CLASSES), 64, generator=torch.Generator().manual_seed(0))
    return EvidenceLender(rows, PromptConfig(image_token_id=9, eos_token_id=0))


@pytest.fixture
def features() -> Features:
    """Of six pictures, each of whose evidence has a pattern of its own, far apart, on top of what all have."""
    noise = torch.Generator().manual_seed(1)
    own = torch.randn(PICTURES, 1, len(CLASSES), generator=noise)
    common = 5 * torch.randn(len(CLASSES), generator=noise)
    return Features(torch.randn(PICTURES, 4, 8, generator=noise), (own + common).expand(-1, len(VIEWS), -1))


def lent(lender: EvidenceLender, features: Features, seed: int) -> tuple[Sample, torch.Tensor]:
    """What the third picture is given: its questions, and its logits (P, 1000)."""
    samples = [Sample((Path(f"{n}.png"),), (QA("What is this?", "a cat", "name"),)) for n in range(PICTURES)]
    states = [random.Random(seed) if n == 2 else None for n in range(PICTURES)]
    found, changed = lend_all(lender, samples, states, features, VIEWS, 12)
    assert changed.pooled is not None and features.pooled is not None
    others = [n for n in range(PICTURES) if n != 2]
    assert found[:2] == samples[:2] and torch.equal(changed.pooled[others], features.pooled[others])
    return found[2], changed.pooled[2]


def test_what_is_said_is_true_of_the_lent_evidence(lender: EvidenceLender, features: Features) -> None:
    """The pooled tokens are one piece of evidence seen three ways, and captions and names follow from it."""
    agree = list[bool]()
    for seed in range(200):
        sample, pooled = lent(lender, features, seed)
        assert torch.allclose(pooled[0], subject(pooled[1], pooled[2]))
        facts = photo_facts(pooled[0].softmax(-1).numpy())
        if facts.mass > 0.9:
            agree += [subject_of(facts) in turn.answer for turn in sample.turns if turn.kind == "name"]
    assert len(agree) > 80 and np.mean(agree) > 0.9
    again, same = lent(lender, features, 7)
    assert again == lent(lender, features, 7)[0] and torch.equal(same, lent(lender, features, 7)[1])


def test_its_noise_is_mostly_what_the_tower_says_of_other_pictures(
    lender: EvidenceLender, features: Features
) -> None:
    """A model that learns from drawn noise alone reads only such. What all pictures share is left out of it."""
    assert features.pooled is not None
    seen = features.pooled[:, 1]  # (I, 1000)
    own = (seen - seen.mean(0)).numpy()
    common = seen.mean(0).numpy()
    borrowed, shared = [], []
    for seed in range(150):
        logits = lent(lender, features, seed)[1][1].numpy()
        borrowed.append(max(np.corrcoef(logits, one)[0, 1] for one in own) > 0.3)
        shared.append(np.corrcoef(logits, common)[0, 1])
    assert 0.4 < np.mean(borrowed) < 0.75
    assert abs(np.mean(shared)) < 0.1


def test_two_things_are_often_about_as_likely(lender: EvidenceLender) -> None:
    """A photograph between a rocket and an oil rig: of all draws some have a second thing that is as good a guess."""
    rng = random.Random(3)
    ties = 0
    for _ in range(400):
        facts = photo_facts(lender.logits(rng)["subject"].softmax(-1).numpy())
        first, second = sorted(facts.masses.values(), reverse=True)[:2]
        ties += first < 1.5 * second and second > 0.15
    assert ties > 400 * 0.04
