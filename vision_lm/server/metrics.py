"""What Prometheus reads at /metrics. A registry for each app: two apps in one process count apart."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from vision_lm.answerer import Answerer
from vision_lm.resident import resident_bytes

if TYPE_CHECKING:
    from vision_lm.server.admission import Admission
    from vision_lm.server.observe import Record

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """Counts what the requests tell, and asks the engines for the rest when it is read."""

    def __init__(self, models: Mapping[str, Answerer], admission: Admission, paths: Iterable[str]) -> None:
        """`paths`: those with a label of their own, so that nobody can invent labels without end."""
        self.registry = registry = CollectorRegistry()
        self._paths = frozenset(paths)
        self._requests = Counter(
            "vision_lm_requests", "Requests by path and status.", ["path", "status"], registry=registry
        )
        self._seconds = Histogram(
            "vision_lm_request_seconds",
            "From head to last byte.",
            ["path"],
            buckets=SECONDS,
            registry=registry,
        )
        self._first_token = Histogram(
            "vision_lm_time_to_first_token_seconds",
            "From a request's head to its answer's first token.",
            ["model"],
            buckets=SECONDS,
            registry=registry,
        )
        queue = Gauge("vision_lm_queue_places_taken", "Answers under way or waiting.", registry=registry)
        queue.set_function(lambda: admission.taken)
        Gauge("vision_lm_queue_places", "As many may be.", registry=registry).set(admission.limit)
        registry.register(_Engines(models))
        ProcessCollector(registry=registry)

    def observe(self, record: Record) -> None:
        """A request that has ended."""
        path = record.path if record.path in self._paths else "other"
        self._requests.labels(path, str(record.status)).inc()
        self._seconds.labels(path).observe(record.elapsed)
        if record.model and record.first_token_seconds is not None:
            self._first_token.labels(record.model).observe(record.first_token_seconds)


class _Engines(Collector):
    """What the engines count by themselves."""

    def __init__(self, models: Mapping[str, Answerer]) -> None:
        self.models = models

    def collect(self) -> Iterator[Metric]:
        tokens = CounterMetricFamily(
            "vision_lm_tokens",
            "Tokens by kind: prompt (computed), shared (prefix found in the cache) and generated.",
            labels=["model", "kind"],
        )
        pages = GaugeMetricFamily(
            "vision_lm_kv_pages", "Pages of the key-value cache by state.", labels=["model", "state"]
        )
        requests = GaugeMetricFamily(
            "vision_lm_engine_requests", "Requests in the engine by state.", labels=["model", "state"]
        )
        pictures = CounterMetricFamily(
            "vision_lm_pictures_encoded", "Pictures not found in the cache of pictures.", labels=["model"]
        )
        preemptions = CounterMetricFamily(
            "vision_lm_preemptions", "Requests that had to give their pages back.", labels=["model"]
        )
        memory = GaugeMetricFamily(
            "vision_lm_engine_resident_memory_bytes", "Of each engine's process.", labels=["model"]
        )
        for name, vlm in self.models.items():
            counts = vlm.engine.counts()
            tokens.add_metric([name, "prompt"], counts.prompt_tokens)
            tokens.add_metric([name, "shared"], counts.shared_tokens)
            tokens.add_metric([name, "generated"], counts.generated_tokens)
            pages.add_metric([name, "used"], counts.pages_used)
            pages.add_metric([name, "available"], counts.pages_available)
            requests.add_metric([name, "running"], counts.running)
            requests.add_metric([name, "waiting"], counts.waiting)
            pictures.add_metric([name], counts.pictures_encoded)
            preemptions.add_metric([name], counts.preemptions)
            if (resident := resident_bytes(vlm.engine.pid)) is not None:
                memory.add_metric([name], resident)
        yield from (tokens, pages, requests, pictures, preemptions, memory)
