"""Everything that a service can be told, with the limits that hold unless it is told otherwise."""

from __future__ import annotations

import os
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Settings:
    """Limits are checked before the work that they limit."""

    api_key: str | None = field(default=None, repr=False)  # None: no key is asked for
    allow_url_hosts: tuple[str, ...] = ()  # from which pictures given as http(s) URLs are fetched
    max_queue: int = 256  # answers under way or waiting at once; beyond it 429
    max_body_bytes: int = 32 * 2**20
    max_images: int = 8  # in one request
    max_pixels: int = 50_000_000  # of one picture, width x height
    max_tokens: int = 1024  # of one answer
    cache_tokens: int | None = None  # of each model's cache of keys and values; None: as the engine chooses
    timeout: float = 120.0  # seconds from a request's first byte to its answer's last
    head_timeout: float = (
        30.0  # seconds until a request's head is there, and for a new connection to send any
    )
    body_timeout: float = 30.0  # seconds until the whole body is there
    drain_timeout: float = 30.0  # seconds that running requests get when the service is told to stop
    decoders: int = os.cpu_count() or 1  # pictures decoded at once
    fetchers: int = 16  # requests at once whose pictures are being fetched


@dataclass(frozen=True)
class Cluster:
    """Where replicas run on Ray, how many, and what each may use."""

    address: str | None = (
        None  # of a Ray cluster ("auto", "10.0.0.5:6379"); None: Ray is started here and stopped
    )
    least: int = 1
    most: int = 1  # more than `least`: as many as the load asks for
    cpus: int | None = None  # of each replica; None: an even share of this machine's
    gpus: float = 0  # of each replica; a half: two share one

    @property
    def cpus_each(self) -> int:
        return self.cpus or max(1, (os.cpu_count() or 1) // self.most)
