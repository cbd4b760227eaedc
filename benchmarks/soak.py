"""A long day in minutes: many requests of every kind, some cancelled, while resident memory is watched.

    python benchmarks/soak.py [--model mini] [--requests 2000] [--warm-up 600] [--clients 8]

Clients ask at once: captions, questions, conversations with two pictures, streams that are dropped in the middle, and
answers of a given form. Half of the pictures were seen lately, half are new. All caches are full after the warm-up;
from then on resident memory must stay within 2% of its median, and the pages in use never be more than the budget.
Prints the figures and a line of JSON; the exit status is 1 if either limit is broken.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import statistics
import sys
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice

import numpy as np
from PIL import Image

import vision_lm
from vision_lm.bench.machine import Machine
from vision_lm.engine.image_cache import ImageCache
from vision_lm.model import VisionLM
from vision_lm.pictures import PictureEncoder
from vision_lm.resident import resident_bytes

LIMIT = 0.02  # of resident memory, to both sides of its median
EVERY = 25  # requests between two readings
PICTURES = 64  # that the image cache may keep, so that it is full, and evicts, long before the end
WORDS = "what which where colour shape cube cat dog left right of the is are there how many red blue near"
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "count": {"type": "integer"}},
    "required": ["name", "count"],
}


@dataclass(frozen=True)
class Soaked:
    """What came of it."""

    requests: int
    kinds: dict[str, int]
    seconds: float
    warm_up: int  # requests before the readings count
    resident_median_bytes: int
    resident_below: float  # the lowest reading, as a share of the median
    resident_above: float  # and the highest
    pages: int  # the budget
    peak_pages: int
    pictures_encoded: int
    preemptions: int

    @property
    def flat(self) -> bool:
        return self.resident_below >= -LIMIT and self.resident_above <= LIMIT

    @property
    def within_budget(self) -> bool:
        return self.peak_pages <= self.pages


class Visitor:
    """Asks one model whatever comes to mind, the same for the same seed."""

    def __init__(self, vlm: VisionLM, pictures: deque[Image.Image], seed: int) -> None:
        self._vlm, self._pictures = vlm, pictures
        self._chance, self._noise = random.Random(seed), np.random.default_rng(seed)
        self._kinds: dict[str, Callable[[], object]] = {
            "caption": lambda: vlm.caption(self._picture(), self._chance.choice(["short", "normal"])),
            "question": lambda: vlm.ask(self._picture(), self._question(), max_tokens=self._tokens()),
            "sampled": lambda: vlm.ask(self._picture(), self._question(), temperature=1.0, max_tokens=16),
            "no picture": lambda: vlm.ask(None, self._question(), max_tokens=self._tokens()),
            "two pictures": self._chat,
            "dropped": self._dropped,
            "choices": lambda: vlm.ask(self._picture(), self._question(), choices=["yes", "no", "unsure"]),
            "regex": lambda: vlm.ask(self._picture(), self._question(), regex="[0-9]{1,3} (cats|dogs)"),
            "schema": lambda: vlm.ask(self._picture(), self._question(), json_schema=SCHEMA, max_tokens=48),
        }

    def ask(self) -> str:
        """One request from beginning to end; returns its kind."""
        kind = self._chance.choice(list(self._kinds))
        self._kinds[kind]()
        return kind

    def _picture(self) -> Image.Image:
        if self._pictures and self._chance.random() < 0.5:
            return self._chance.choice(list(self._pictures))
        width, height = self._chance.randint(20, 640), self._chance.randint(20, 640)
        picture = Image.fromarray(self._noise.integers(0, 256, (height, width, 3), dtype=np.uint8))
        self._pictures.append(picture)
        return picture

    def _question(self) -> str:
        return " ".join(self._chance.choices(WORDS.split(), k=self._chance.randint(2, 120)))

    def _tokens(self) -> int:
        return self._chance.randint(1, 64)

    def _chat(self) -> object:
        parts = [{"type": "image", "image": self._picture()} for _ in range(2)]
        content = [*parts, {"type": "text", "text": self._question()}]
        return self._vlm.chat([{"role": "user", "content": content}], max_tokens=self._tokens())

    def _dropped(self) -> object:
        stream = self._vlm.stream(self._picture(), self._question(), max_tokens=200, temperature=2.0)
        pieces = list(islice(stream, self._chance.randint(0, 6)))
        stream.close()
        return pieces


def soak(vlm: VisionLM, requests: int, warm_up: int, clients: int) -> Soaked:
    """Ask, and read the memory every EVERY requests."""
    engine = vlm.engine
    pictures: deque[Image.Image] = deque(maxlen=PICTURES // 2)
    visitors = [Visitor(vlm, pictures, seed) for seed in range(clients)]
    readings: list[int] = []
    kinds: Counter[str] = Counter()
    start = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        for begun in range(0, requests, EVERY):
            asked = min(EVERY, requests - begun)
            # Each client in turn takes every so many-th request of this part.
            shares = [range(number, asked, clients) for number in range(clients)]
            parts = pool.map(
                lambda pair: [pair[0].ask() for _ in pair[1]], zip(visitors, shares, strict=True)
            )
            for part in parts:
                kinds.update(part)
            gc.collect()  # cycles that wait for the collector are no leak
            if begun + asked > warm_up:
                readings.append(resident())
            print(
                f"\r{begun + asked:>6} requests, {resident() / 1e6:,.1f} MB",
                end="",
                flush=True,
            )
    print()
    median = statistics.median(readings)
    return Soaked(
        requests=requests,
        kinds=dict(kinds),
        seconds=time.perf_counter() - start,
        warm_up=warm_up,
        resident_median_bytes=int(median),
        resident_below=min(readings) / median - 1,
        resident_above=max(readings) / median - 1,
        pages=engine.pages.count,
        peak_pages=engine.stats.peak_pages,
        pictures_encoded=engine.images.encoded,
        preemptions=engine.scheduler.preemptions,
    )


def with_small_image_cache(vlm: VisionLM) -> VisionLM:
    """The same model, few of whose pictures are kept: a cache that still fills is no leak, but looks like one."""
    size = vlm.prompts.tokens_per_image * vlm.config.text.hidden_size * vlm.dtype.itemsize
    images = ImageCache(PictureEncoder(vlm.encoder, vlm.projector), budget=PICTURES * size)
    vlm.engine.images = vlm.engine.runner.images = images
    return vlm


def resident() -> int:
    return resident_bytes(os.getpid()) or 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="mini")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--warm-up", type=int, default=600)
    parser.add_argument("--clients", type=int, default=8)
    options = parser.parse_args()
    if not 0 <= options.warm_up < options.requests or options.clients < 1:
        parser.error("give fewer --warm-up than --requests, and at least one client")

    vlm = with_small_image_cache(vision_lm.load(options.model, options.device))
    soaked = soak(vlm, options.requests, options.warm_up, options.clients)
    print(f"{'kinds':<20}{', '.join(f'{count} {kind}' for kind, count in sorted(soaked.kinds.items()))}")
    print(f"{'requests a second':<20}{soaked.requests / soaked.seconds:.1f}")
    print(f"{'pictures encoded':<20}{soaked.pictures_encoded}; preemptions {soaked.preemptions}")
    print(
        f"{'resident memory':<20}{soaked.resident_median_bytes / 1e6:,.1f} MB, "
        f"{soaked.resident_below:+.2%} to {soaked.resident_above:+.2%}: "
        f"{'within' if soaked.flat else 'BEYOND'} {LIMIT:.0%}"
    )
    print(
        f"{'pages':<20}{soaked.peak_pages} of {soaked.pages}: "
        f"{'within' if soaked.within_budget else 'BEYOND'} the budget"
    )
    print(json.dumps({"machine": asdict(Machine.of(vlm.device)), **asdict(soaked)}))
    sys.exit(0 if soaked.flat and soaked.within_budget else 1)


if __name__ == "__main__":
    main()
