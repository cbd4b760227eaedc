"""The application: models and settings in, an ASGI app out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI

from vision_lm import __version__
from vision_lm.answerer import Answerer
from vision_lm.server import about, chat, explanation, simple
from vision_lm.server.errors import add_handlers
from vision_lm.server.gate import WORK, Gate
from vision_lm.server.metrics import Metrics
from vision_lm.server.observe import Observer
from vision_lm.server.service import Service
from vision_lm.server.settings import Settings

DESCRIPTION = """Captions of pictures and answers to questions about them.
Every refusal has the body `{"error": {"message", "type", "param", "code"}}`; every response the header X-Request-ID."""
WATCHED = ("/v1/models", "/healthz", "/readyz", "/metrics", "/openapi.json", *WORK)
# FastAPI can report requests to a collector that the environment names; here nothing is ever reported.
NO_TELEMETRY: dict[str, Any] = {
    "telemetry": {"auto_configure": False, "tracing": False, "metrics": False, "logs": False}
}


def create_app(models: Mapping[str, Answerer], settings: Settings | None = None) -> FastAPI:
    """The service of these models by name; the first answers requests that name none."""
    settings = settings or Settings()
    service = Service(models, settings)
    metrics = Metrics(service.models, service.admission, WATCHED)
    app = FastAPI(
        title="vision-lm",
        version=__version__,
        description=DESCRIPTION,
        docs_url=None,  # these pages load scripts from elsewhere
        redoc_url=None,
        **NO_TELEMETRY,
    )
    app.state.service, app.state.metrics = service, metrics
    add_handlers(app)
    for part in (chat, simple, explanation, about):
        app.include_router(part.router)
    app.add_middleware(Gate, settings=settings, admission=service.admission)
    app.add_middleware(Observer, metrics=metrics)  # the last one added is outermost
    return app
