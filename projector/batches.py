"""Numbers of samples into a batch: drawn, packed, with pixels or cached features."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from projector.data.evidence import EvidenceLender, lend_all
from projector.data.samples import BadRecords, Sample, reject
from projector.feature_cache import FeatureCache
from projector.mixture import Mixture
from projector.packing import Packed, collate, pack_sample
from vision_lm.encoder import Features, ImageEncoder
from vision_lm.errors import DataError, ImageError, TrainingError
from vision_lm.images import open_image
from vision_lm.prompts import PromptBuilder

ATTEMPTS = 20  # to find a sample whose pictures can be read


@dataclass(frozen=True)
class Batch:
    """What one forward pass needs; either pixels or features, or neither for a batch of text."""

    packed: Packed
    pixels: Tensor | None  # (I, 3, S, S)
    features: Features | None  # of I pictures

    def to(self, device: torch.device) -> Batch:
        def moved(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value.to(device)
            if dataclasses.is_dataclass(value):
                return type(value)(
                    **{f.name: moved(getattr(value, f.name)) for f in dataclasses.fields(value)}
                )  # type: ignore[misc]
            return value

        return moved(self)


class BatchMaker:
    """Reads pictures (or their cached features) and lays out the turns."""

    def __init__(
        self,
        mixture: Mixture,
        prompts: PromptBuilder,
        encoder: ImageEncoder,
        cache: FeatureCache | None,
        max_tokens: int,
        bad: BadRecords | None = None,
    ) -> None:
        self.mixture, self.prompts, self.encoder, self.cache, self.max_tokens = (
            mixture,
            prompts,
            encoder,
            cache,
            max_tokens,
        )
        self.bad = bad
        self.lender = None
        if any(part.source.evidence for part in mixture.parts):
            if cache is None or not encoder.config.pooled:
                raise TrainingError(
                    "recipe: 'evidence' needs a feature_cache and a tower whose pooled tokens are class logits; leave it out"
                )
            self.lender = EvidenceLender(encoder.tower.trunk.classifier.weight, prompts.config)

    def make(self, numbers: Iterable[int]) -> Batch:
        """The batch of these sample numbers."""
        if self.cache is None:
            return self._from_pixels(numbers)
        drawn = [self.mixture.draw(number) for number in numbers]
        paths = [image for one in drawn for image in one.sample.images]
        features = self.cache.get(paths) if paths else None
        samples = [one.sample for one in drawn]
        if self.lender is not None and features is not None:
            lent = [one.rng if one.evidence else None for one in drawn]
            samples, features = lend_all(self.lender, samples, lent, features, self.mixture.max_turns)
        return Batch(self._pack(samples), None, features)

    def _from_pixels(self, numbers: Iterable[int]) -> Batch:
        loaded = [self._load(number) for number in numbers]
        pixels = [picture for _, pictures in loaded for picture in pictures]
        return Batch(
            self._pack([sample for sample, _ in loaded]), torch.stack(pixels) if pixels else None, None
        )

    def _load(self, number: int) -> tuple[Sample, list[Tensor]]:
        """A sample with its pictures (3, S, S); where one cannot be read, another sample if bad ones are skipped."""
        for attempt in range(ATTEMPTS):
            sample = self.mixture.draw(number, attempt).sample
            try:
                return sample, [self.encoder.preprocess(open_image(path)) for path in sample.images]
            except ImageError as error:
                reject(DataError(f"{sample.source}: {error}"), self.bad)
        raise DataError(f"{ATTEMPTS} samples in a row have unreadable pictures; look at the data")

    def _pack(self, samples: Iterable[Sample]) -> Packed:
        return collate([pack_sample(sample, self.prompts, self.max_tokens) for sample in samples])
