"""What there is to know about the service itself: its models, its health, its metrics."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse, Response
from prometheus_client import generate_latest

from vision_lm.server.errors import ApiError, documented
from vision_lm.server.schemas import Model, ModelList, Status
from vision_lm.server.service import Service

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
router = APIRouter()


@router.get(
    "/v1/models", response_model=ModelList, responses=documented(401, 403), summary="The models by name"
)
async def models(request: Request) -> ModelList:
    service: Service = request.app.state.service
    return ModelList(data=[Model(id=name, created=service.started) for name in service.models])


@router.get(
    "/v1/models/{name:path}",
    response_model=Model,
    responses=documented(401, 403, 404, 422),
    summary="One model",
)
async def model(name: str, request: Request) -> Model:
    service: Service = request.app.state.service
    name, _ = service.model(name)
    return Model(id=name, created=service.started)


@router.get("/healthz", response_model=Status, responses=documented(403), summary="Is the process alive?")
async def healthz() -> Status:
    return Status(status="ok")


@router.get("/readyz", response_model=Status, responses=documented(403, 503), summary="May requests be sent?")
async def readyz(request: Request) -> Status:
    """503 from the moment at which the service is told to stop; requests that run are still finished."""
    service: Service = request.app.state.service
    if service.admission.draining:
        raise ApiError(503, "the service is stopping; ask another one", "draining")
    return Status(status="ready")


@router.get(
    "/metrics",
    response_class=PlainTextResponse,
    responses=documented(401, 403),
    summary="For Prometheus",
)
async def metrics(request: Request) -> Response:
    return Response(
        generate_latest(request.app.state.metrics.registry), headers={"Content-Type": METRICS_TYPE}
    )
