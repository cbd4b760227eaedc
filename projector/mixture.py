"""Which sample is trained when: a pure function of the seed and the sample's number, so a resumed run sees the same ones."""

from __future__ import annotations

import dataclasses
import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from projector.data.readers import read_samples
from projector.data.samples import BadRecords, Sample, reject
from projector.recipe import Recipe, Source
from vision_lm.errors import DataError


@dataclass(frozen=True)
class Part:
    """The samples of one source."""

    source: Source
    samples: Sequence[Sample]

    def fingerprint(self) -> str:
        """How many samples, and a short hash of what they show and say."""
        digest = hashlib.sha256()
        for sample in self.samples:
            words = [text for turn in sample.turns for text in (turn.question, turn.answer, turn.points)]
            digest.update(repr((*map(str, sample.images), sample.linked, *words)).encode("utf-8", "replace"))
        return f"{len(self.samples):,} samples, {digest.hexdigest()[:12]}"


@dataclass(frozen=True)
class Drawn:
    """A sample chosen for training, with the random state that any augmentation of it must use."""

    sample: Sample
    rng: random.Random
    evidence: bool


class Mixture:
    """An endless, weighted, reproducible stream over several sources, drawn with replacement."""

    def __init__(self, parts: Sequence[Part], seed: int, max_turns: int) -> None:
        for part in parts:
            if not part.samples:
                raise DataError(f"{part.source.path}: no usable sample is left; check the file")
        self.parts, self.seed, self.max_turns = parts, seed, max_turns
        self.weights = [part.source.weight for part in parts]

    def draw(self, number: int, attempt: int = 0) -> Drawn:
        """The sample with this number, its turns shuffled and thinned to `max_turns`; other attempts, other samples."""
        rng = random.Random(f"{self.seed}/{number}/{attempt}")
        part = rng.choices(self.parts, self.weights)[0]
        sample = part.samples[rng.randrange(len(part.samples))]
        if not sample.linked:
            turns = rng.sample(sample.turns, min(self.max_turns, len(sample.turns)))
            sample = dataclasses.replace(sample, turns=tuple(turns))
        return Drawn(sample, rng, part.source.evidence)

    def pictures(self, count: int) -> list[Path]:
        """Every picture of the first `count` samples that are drawn, or of all that there are, if those are no more."""
        if count >= sum(len(part.samples) for part in self.parts):
            samples = [sample for part in self.parts for sample in part.samples]
        else:
            samples = [self.draw(number).sample for number in range(count)]
        return [image for sample in samples for image in sample.images]

    def without(self, unreadable: Mapping[Path, str], bad: BadRecords | None) -> Mixture:
        """The same mixture less the samples that show any of these pictures; each is rejected for the reason given."""
        if not unreadable:
            return self
        parts = []
        for part in self.parts:
            good = []
            for sample in part.samples:
                reasons = [unreadable[image] for image in sample.images if image in unreadable]
                if reasons:
                    reject(DataError(f"{sample.source}: {reasons[0]}"), bad)
                else:
                    good.append(sample)
            parts.append(Part(part.source, good))
        return Mixture(parts, self.seed, self.max_turns)


def read_mixture(recipe: Recipe, bad: BadRecords | None) -> Mixture:
    """Read every source of a recipe; a bad record raises DataError, or is collected in `bad`."""
    parts = []
    for source in recipe.sources:
        samples = read_samples(
            Path(source.path),
            format=source.format,
            image_root=Path(source.image_root) if source.image_root else None,
            annotations=Path(source.annotations) if source.annotations else None,
            bad=bad,
        )
        parts.append(Part(source, list(samples)))
    return Mixture(parts, recipe.seed, recipe.max_turns)
