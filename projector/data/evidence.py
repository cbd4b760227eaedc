"""Photographs without photographs: synthetic class evidence for the pooled tokens.

The frozen tower already names a thousand things in real photographs; its pooled tokens carry the class logits.
What the projector and the language model must learn is to SAY what the logits mean, whatever the patches look
like. So a training picture lends its patches, roughly mixed with its neighbour's, and gets logits drawn to look
like those of a photograph of some class: a peak, its look-alikes (classes whose classifier rows are similar),
and noise, which for most is what the tower says of some training picture, less what it says of any: of noise that
was drawn alone a model learns to read only such. The facts said are computed from these logits
(projector/data/photo_facts.py), exactly as they would be from real ones: the head is distilled into words.
The idea that distillation needs variety rather than real pictures is that of Asano & Saeed (arXiv 2112.00725).
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from projector.data import photo_facts
from projector.data.imagenet_names import CLASSES
from projector.data.samples import QA, Sample
from vision_lm.config import PromptConfig
from vision_lm.encoder import Features, subject

# The height of a peak: from one that is lost in the noise to one beyond doubt.
_PEAK = (2.0, 12.0)
_BORROWED = 0.6  # of the draws have what the tower says of a picture for their noise
_TIED = 0.5  # of the draws of several classes have peaks of about the same height


class EvidenceLender:
    """Draws class logits that look like a photograph's, and what is to be said about them."""

    def __init__(self, classifier: Tensor, captions: PromptConfig) -> None:
        """classifier: the head's weight (1000, C)."""
        rows = classifier.detach().float().cpu()
        rows = rows - rows.mean(0)
        rows = torch.nn.functional.normalize(rows, dim=1)
        self.directions = rows.numpy()  # (1000, C), of length 1
        self.similarity = (rows @ rows.T).numpy()  # (1000, 1000), cosine
        self.captions = captions

    @cached_property
    def people(self) -> list[int]:
        return [index for index, entry in enumerate(CLASSES) if entry.person_likely]

    @cached_property
    def nouns(self) -> dict[str, list[int]]:
        members: dict[str, list[int]] = {}
        for index, entry in enumerate(CLASSES):
            members.setdefault(entry.basic, []).append(index)
        return members

    def logits(self, rng: random.Random, seen: np.ndarray | None = None) -> dict[str, Tensor]:
        """The evidence (1000,) of the whole picture, of its centre, and of both, as VisionConfig.pooled names them.

        seen: (I, 2, 1000), what the tower says of some pictures, whole and centre, less what it says of all of them.
        """
        noise = np.random.default_rng(rng.getrandbits(32))
        peaks = self._peaks(rng)
        base = np.zeros(len(CLASSES), np.float32)
        height = rng.uniform(*_PEAK)
        tied = rng.random() < _TIED
        for peak in peaks:
            base += self.similarity[peak] * (height + rng.uniform(-0.5, 0.5) if tied else rng.uniform(*_PEAK))
            base[peak] += rng.uniform(0.0, 3.0)
        if seen is not None and rng.random() < _BORROWED:
            shared = seen[rng.randrange(len(seen))] * rng.uniform(0.5, 2.0)  # (2, 1000)
        else:
            shared = np.stack([self._noise(noise, rng.random()) * rng.uniform(0.5, 1.5)] * 2)
        views = []
        for background in shared:
            own = base + background + noise.normal(0, 0.6, len(CLASSES))
            if rng.random() < 0.15:  # something else stands beside or around the subject
                own = own + self.similarity[rng.randrange(len(CLASSES))] * rng.uniform(2.0, 8.0)
            views.append(own)
        whole, centre = torch.from_numpy(np.stack(views).astype(np.float32))
        return {"subject": subject(whole, centre), "all": whole, "centre": centre}

    def sample(self, logits: Tensor, count: int, rng: random.Random) -> tuple[QA, ...]:
        """Questions and captions that are true of these logits (1000,)."""
        facts = photo_facts.photo_facts(logits.softmax(-1).numpy())
        requests = {
            "short": self.captions.caption_short,
            "normal": self.captions.caption_normal,
            "long": self.captions.caption_long,
        }
        turns = [
            QA(request, photo_facts.caption(facts, length, rng), "caption")
            for length, request in requests.items()
        ]
        return tuple(rng.sample(turns, 2) + photo_facts.questions(facts, rng, count - 2))

    def lend(
        self,
        sample: Sample,
        patches: Tensor,
        other: Tensor,
        seen: np.ndarray | None,
        rng: random.Random,
        count: int,
    ) -> tuple[Sample, Tensor, dict[str, Tensor]]:
        """A sample about synthetic evidence: its turns, mixed patches (N, Dv), logits (1000,) of every view."""
        logits = self.logits(rng, seen)
        noise = torch.Generator().manual_seed(rng.getrandbits(32))
        order = torch.randperm(patches.shape[0], generator=noise)
        share = torch.rand(patches.shape[0], 1, generator=noise)
        mixed = (share * patches + (1 - share) * other[order]) * rng.uniform(0.7, 1.4)
        mixed = mixed + torch.randn(mixed.shape, generator=noise) * mixed.std() * rng.uniform(0.0, 0.5)
        turns = self.sample(logits["subject"], count, rng)
        return dataclasses.replace(sample, turns=turns, linked=False), mixed, logits

    def _noise(self, noise: np.random.Generator, kin: float) -> np.ndarray:
        """(1000,), of spread 1: the part `kin` shared by classes that are alike, the rest each class's own."""
        alike = self.directions @ noise.normal(0, 1, self.directions.shape[1])
        return np.sqrt(kin) * alike + np.sqrt(1 - kin) * noise.normal(0, 1, len(CLASSES))

    def _peaks(self, rng: random.Random) -> list[int]:
        draw = rng.random()
        if draw < 0.2:  # a person: several of the classes that come with one
            return rng.sample(self.people, rng.choice((1, 2, 2, 3)))
        if draw < 0.45:  # two unlike things, so that neither is certain
            return [
                peak for noun in rng.sample(list(self.nouns), 2) for peak in self._some(noun, rng, (1, 1, 2))
            ]
        if draw < 0.75:
            return self._some(rng.choice(list(self.nouns)), rng, (1, 1, 2, 3))
        return [rng.randrange(len(CLASSES))]

    def _some(self, noun: str, rng: random.Random, counts: Sequence[int]) -> list[int]:
        """Classes that people call by this noun."""
        members = self.nouns[noun]
        return rng.sample(members, min(len(members), rng.choice(counts)))


def lend_all(
    lender: EvidenceLender,
    samples: Sequence[Sample],
    lent: Sequence[random.Random | None],
    features: Features,
    views: Sequence[str],
    count: int,
) -> tuple[list[Sample], Features]:
    """Replace each sample that has a random state in `lent` (it must show exactly one picture) by synthetic evidence.

    views: VisionConfig.pooled, which says what the pooled tokens are of.
    """
    if features.pooled is None:
        raise ValueError("class evidence needs a tower whose pooled tokens are class logits")
    patches, pooled = features.patches.clone(), features.pooled.clone()  # (I, N, Dv), (I, P, E)
    seen = _apart(features.pooled, views)
    result, place = [], 0
    for sample, rng in zip(samples, lent, strict=True):
        if rng is not None:
            neighbour = features.patches[rng.randrange(len(patches))]
            sample, patches[place], logits = lender.lend(
                sample, features.patches[place], neighbour, seen, rng, count
            )
            pooled[place] = torch.stack([logits[view] for view in views])  # (P, 1000)
        result.append(sample)
        place += len(sample.images)
    return result, Features(patches, pooled)


def _apart(pooled: Tensor, views: Sequence[str]) -> np.ndarray | None:
    """(I, P, E) -> (I, 2, E): what the tower says of each picture, whole and centre, less what it says of all of them."""
    if len(pooled) < 2 or not {"all", "centre"} <= set(views):
        return None
    both = pooled[:, [views.index("all"), views.index("centre")]].float()  # (I, 2, E)
    return (both - both.mean(0)).numpy()
