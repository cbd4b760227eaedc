"""One step of the model: the scheduler's spans in; tokens, or the logits to choose them from, out."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vision_lm.engine.image_cache import ImageCache
from vision_lm.engine.kv_cache import KVCache
from vision_lm.engine.request import Request
from vision_lm.engine.sampling import Token
from vision_lm.engine.scheduler import Span
from vision_lm.engine.torch_decoder import Chunk, TorchDecoder
from vision_lm.errors import VisionLMError


@dataclass(frozen=True)
class Outcome:
    """Of the requests whose next token can be chosen: the token, or else the logits (R, V)."""

    chosen: Sequence[tuple[Request, Token | VisionLMError]] = ()
    open: Sequence[Request] = ()
    logits: Tensor | None = None  # of the open ones, if there are any


class Runner:
    """Feeds a decoder: single generated tokens to `decode`, parts of prompts with their pictures to `prefill`."""

    def __init__(self, decoder: TorchDecoder, cache: KVCache, images: ImageCache) -> None:
        self.decoder, self.cache, self.images = decoder, cache, images

    def run(self, spans: Sequence[Span]) -> Outcome:
        """What the model says after these spans, when it has been computed."""
        decoding: list[Span] = []
        prompts: list[Span] = []
        for span in spans:
            (decoding if _decodes(span) else prompts).append(span)
        # A GPU works on the prompts while what comes after them is made ready.
        prefilled = self._prefill(prompts) if prompts else None
        chosen, decoded = self._decode(decoding) if decoding else ([], None)
        open_requests = [span.request for span in (*(() if chosen else decoding), *prompts) if span.complete]
        logits = [one for one in (decoded, prefilled) if one is not None]
        if prompts or not chosen:
            self._wait()
        if not open_requests:
            return Outcome(chosen)
        return Outcome(chosen, open_requests, torch.cat(logits) if len(logits) > 1 else logits[0])

    def _decode(
        self, spans: Sequence[Span]
    ) -> tuple[list[tuple[Request, Token | VisionLMError]], Tensor | None]:
        """→ the next tokens, or the logits (B, V)."""
        requests = [span.request for span in spans]
        rows = (
            [request.tokens[-1].id for request in requests],
            [span.start for span in spans],
            [request.pages for request in requests],
        )
        if all(request.greedy for request in requests):
            tokens = self.decoder.decode_greedy(*rows, self.cache)
            if tokens is not None:
                return list(zip(requests, tokens, strict=True)), None
        return [], self.decoder.decode(*rows, self.cache)

    def _prefill(self, spans: Sequence[Span]) -> Tensor:
        """→ the logits (R, V) after the spans that are complete."""
        chunks = [
            Chunk(
                span.start,
                span.count,
                self.cache.slots(span.request.pages, span.stop),
                span.complete,
                span.request.prefix,
            )
            for span in spans
        ]
        return self.decoder.prefill(self._embeddings(spans), chunks, self.cache)

    def _wait(self) -> None:
        """For the device: choosing a token would wait anyway, but that is not the model's time."""
        if self.decoder.device.type == "cuda":
            torch.cuda.current_stream(self.decoder.device).synchronize()

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
    return span.count == 1 and span.complete and len(span.request.tokens) > 0


def _offsets(spans: Sequence[Span]) -> Iterator[int]:
    """Where each span begins when they stand one after the other."""
    return itertools.accumulate((span.count for span in spans[:-1]), initial=0)
