"""One step of the model: the scheduler's spans in, the logits after those that are complete out."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from vision_lm.engine.image_cache import ImageCache
from vision_lm.engine.kv_cache import KVCache
from vision_lm.engine.request import Request
from vision_lm.engine.scheduler import Span
from vision_lm.engine.torch_decoder import Chunk, TorchDecoder


class Runner:
    """Feeds a decoder: single generated tokens to `decode`, parts of prompts with their pictures to `prefill`."""

    def __init__(self, decoder: TorchDecoder, cache: KVCache, images: ImageCache) -> None:
        self.decoder, self.cache, self.images = decoder, cache, images

    def run(self, spans: Sequence[Span]) -> tuple[list[Request], Tensor | None]:
        """→ the requests whose next token can be chosen, and its logits (R, V)."""
        decoding = [span for span in spans if _decodes(span)]
        prompts = [span for span in spans if not _decodes(span)]
        logits = []
        if decoding:
            logits.append(
                self.decoder.decode(
                    [span.request.tokens[-1].id for span in decoding],
                    [span.start for span in decoding],
                    [span.request.pages for span in decoding],
                    self.cache,
                )
            )
        if prompts:
            chunks = [
                Chunk(
                    span.start,
                    span.count,
                    self.cache.slots(span.request.pages, span.stop),
                    span.complete,
                    span.request.prefix,
                )
                for span in prompts
            ]
            logits.append(self.decoder.prefill(self._embeddings(prompts), chunks, self.cache))
        complete = [span.request for span in (*decoding, *prompts) if span.complete]
        if (
            self.decoder.device.type == "cuda"
        ):  # choosing a token would wait anyway, but that is not the model's time
            torch.cuda.current_stream(self.decoder.device).synchronize()
        return complete, torch.cat(logits) if complete else None

    @torch.inference_mode()
    def _embeddings(self, spans: Sequence[Span]) -> Tensor:
        """Embeddings of the spans' tokens, one span after the other, image tokens in their places: (N, Dt)."""
        ids = [one for span in spans for one in span.request.ids(span.start, span.stop)]
        embeddings = self.decoder.embed(ids)  # (N, Dt)
        seen = [
            (offset - span.start, span, place)
            for offset, span in zip(_offsets(spans), spans, strict=True)
            for place in span.request.places
            if place.start < span.stop and span.start < place.stop
        ]
        encoded = self.images.get([place.image for _, _, place in seen])
        for (shift, span, place), tokens in zip(seen, encoded, strict=True):
            first, last = max(place.start, span.start), min(place.stop, span.stop)
            embeddings[shift + first : shift + last] = tokens[first - place.start : last - place.start]
        return embeddings


def _decodes(span: Span) -> bool:
    """Whether only the token that was generated last is to be computed."""
    return span.complete and span.count == 1 and len(span.request.tokens) > 0


def _offsets(spans: Sequence[Span]) -> Iterator[int]:
    """Where each span begins when they stand one after the other."""
    return itertools.accumulate((span.count for span in spans[:-1]), initial=0)
