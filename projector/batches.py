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
from projector.mixture import Drawn, Mixture
from projector.packing import Packed, Row, collate, pack_sample
from vision_lm.encoder import Features, ImageEncoder
from vision_lm.errors import DataError, ImageError, TrainingError
from vision_lm.images import open_image
from vision_lm.prompts import PromptBuilder

ATTEMPTS = 20  # to find a sample that can be used


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
        loaded = [self._load(number) for number in numbers]
        rows = [one.row for one in loaded]
        if self.cache is None:
            pixels = [picture for one in loaded for picture in one.pixels]
            return Batch(collate(rows), torch.stack(pixels) if pixels else None, None)
        samples = [one.drawn.sample for one in loaded]
        paths = [image for sample in samples for image in sample.images]
        features = self.cache.get(paths) if paths else None
        if self.lender is not None and features is not None:
            lent = [one.drawn.rng if one.drawn.evidence else None for one in loaded]
            views = self.encoder.config.pooled
            samples, features = lend_all(self.lender, samples, lent, features, views, self.mixture.max_turns)
            rows = [
                self._pack(sample) if rng else row
                for sample, rng, row in zip(samples, lent, rows, strict=True)
            ]
        return Batch(collate(rows), None, features)

    def _load(self, number: int) -> _Loaded:
        """A sample laid out, with its pictures unless their features are cached.

        Where that cannot be done, an error, or another sample if bad ones are skipped.
        """
        for attempt in range(ATTEMPTS):
            drawn = self.mixture.draw(number, attempt)
            try:
                return _Loaded(drawn, self._pack(drawn.sample), self._pixels(drawn.sample))
            except DataError as error:
                problem = error
                reject(error, self.bad)
        raise DataError(f"{ATTEMPTS} samples in a row cannot be used, the last: {problem}")

    def _pack(self, sample: Sample) -> Row:
        return pack_sample(sample, self.prompts, self.max_tokens)

    def _pixels(self, sample: Sample) -> list[Tensor]:
        """Each picture (3, S, S)."""
        if self.cache is not None and all(path in self.cache for path in sample.images):
            return []
        try:
            pixels = [self.encoder.preprocess(open_image(path)) for path in sample.images]
        except ImageError as error:
            raise DataError(f"{sample.source}: {error}") from None
        return pixels if self.cache is None else []


@dataclass(frozen=True)
class _Loaded:
    drawn: Drawn
    row: Row
    pixels: list[Tensor]  # (3, S, S) of each picture; none where features are cached
