"""The same app on Ray Serve: replicas on one machine or many, as many as the load asks for.

    clients ──▶ Ray's proxy ──▶ replica: gate, service, engine     (each with its own models and limits)
                          └───▶ replica: …

A replica is exactly what `vision-lm serve` runs in one process: it checks, refuses and answers in the same way.
Ray chooses the replica with the fewest requests under way, starts more, and replaces those that die.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import threading
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vision_lm.errors import VisionLMError
from vision_lm.images import ImageWarning
from vision_lm.server.arguments import KEY_REMEDY
from vision_lm.server.listen import check_reach, take_port
from vision_lm.server.log_lines import log_to_stderr
from vision_lm.server.settings import Cluster, Settings

if TYPE_CHECKING:
    from vision_lm.engine.quantize import Mode

log = logging.getLogger("vision_lm.server")
APP = "vision-lm"
SPARE = 16  # requests a replica is sent beyond its queue, so that it is the replica that refuses them, with a reason
BUSY = 32  # requests under way in a replica, from which another one is worth its memory


def serve_on_ray(
    sources: Mapping[str, str],
    host: str,
    port: int,
    settings: Settings,
    cluster: Cluster,
    device: str = "auto",
    quantize: Mode = None,
) -> None:
    """Serve checkpoints by name until SIGTERM or SIGINT. Raises VisionLMError before anything is served."""
    listener = take_port(host, port)
    try:
        check_reach(listener, settings.api_key is not None, "API key", KEY_REMEDY)
        port = listener.getsockname()[1]
    finally:
        listener.close()  # Ray's proxy takes it, in a process of its own
    ray, serve = ray_modules()
    _connect(ray, cluster)
    log_to_stderr()
    stop = threading.Event()
    # After Ray, which sets handlers of its own that abort the process.
    before = {one: signal.signal(one, lambda *_: stop.set()) for one in (signal.SIGTERM, signal.SIGINT)}
    try:
        # Not on every machine: one address to guard, and to put a proxy with TLS before.
        serve.start(proxy_location="HeadOnly", http_options={"host": host, "port": port})
        deployment = _deployment(serve, sources, settings, cluster, device, quantize)
        try:
            serve.run(deployment.bind(), name=APP, logging_config=_QUIET)
        except RuntimeError as error:
            raise VisionLMError(f"the replicas do not start: {_reason(serve, error)}") from error
        fields = {"host": host, "port": port, "replicas": f"{cluster.least}-{cluster.most}"}
        log.info("listening", extra={"fields": fields})
        stop.wait()
        serve.delete(APP)  # replicas get no more requests, and the drain timeout for those they have
        log.info("stopped")
    finally:
        if cluster.address is None:
            serve.shutdown()
            ray.shutdown()
        for one, handler in before.items():
            signal.signal(one, handler)


_QUIET = {"enable_access_log": False, "log_level": "WARNING"}  # the app writes its own line for each request


def ray_modules() -> tuple[Any, Any]:
    """ray and ray.serve. Raises ModuleNotFoundError where they are not installed."""
    # Read at the import: nothing is reported to anyone, and nobody without the token may give Ray orders.
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    import ray
    from ray import serve

    return ray, serve


def _connect(ray: Any, cluster: Cluster) -> None:
    """Raises VisionLMError."""
    here: dict[str, Any] = {"_node_ip_address": "127.0.0.1", "include_dashboard": False}
    if cluster.address is None:
        here["num_cpus"] = max(os.cpu_count() or 1, cluster.most * cluster.cpus_each)
    try:
        ray.init(
            cluster.address or "local",
            namespace=APP,
            logging_level=logging.WARNING,
            **(here if cluster.address is None else {}),
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise VisionLMError(
            f"Ray at {cluster.address or 'this machine'} does not answer ({' '.join(str(error).split())[:200]}); "
            "start it with `ray start`, or leave --ray-address out to have one started here"
        ) from error


def _deployment(
    serve: Any,
    sources: Mapping[str, str],
    settings: Settings,
    cluster: Cluster,
    device: str,
    quantize: Mode,
) -> Any:
    """The app as Ray replicates it. The function below travels to the replicas; this module's names do not."""

    def build() -> Any:
        import vision_lm
        from vision_lm.server.app import create_app
        from vision_lm.server.log_lines import log_to_stderr

        log_to_stderr()
        warnings.simplefilter("ignore", ImageWarning)
        models = {
            name: vision_lm.load(source, device, quantize=quantize, cache_tokens=settings.cache_tokens)
            for name, source in sources.items()
        }
        return create_app(models, settings)

    scale: dict[str, Any] = {"num_replicas": cluster.least}
    if cluster.most > cluster.least:
        scale = {
            "autoscaling_config": {
                "min_replicas": cluster.least,
                "max_replicas": cluster.most,
                "target_ongoing_requests": min(BUSY, settings.max_queue),
            }
        }
    return serve.deployment(
        serve.ingress(build)(),
        name=APP,
        ray_actor_options={"num_cpus": cluster.cpus_each, "num_gpus": cluster.gpus},
        max_ongoing_requests=settings.max_queue + SPARE,
        max_queued_requests=settings.max_queue,  # beyond it Ray's proxy answers 503
        graceful_shutdown_timeout_s=settings.drain_timeout,
        max_constructor_retry_count=1,
        **scale,
    )


def _reason(serve: Any, error: Exception) -> str:
    """The last line that a replica's failure left: the error of loading a model, mostly."""
    application = serve.status().applications.get(APP)
    messages = [one.message for one in application.deployments.values()] if application else []
    lines = [line.strip() for line in "\n".join([*messages, str(error)]).splitlines() if line.strip()]
    named = [line for line in lines if re.match(r"[\w.]+(Error|Exception): ", line)]
    return (named or lines or ["for no reason given"])[-1][:400]
