"""What is known of each request: its id, one line of log at its end, and its share of the metrics."""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vision_lm.async_model import AsyncAnswer
from vision_lm.server.errors import as_api_error
from vision_lm.server.metrics import Metrics
from vision_lm.server.service import usage_of

log = logging.getLogger("vision_lm.server")
PROBED = ("/healthz", "/readyz", "/metrics")  # every few seconds, by machines
GONE = 499  # the client closed the connection before the answer was complete


@dataclass
class Record:
    """One request. Nothing of what was asked, shown or answered."""

    id: str
    method: str
    path: str
    started: float = field(default_factory=time.perf_counter)
    status: int = GONE  # unless a response begins
    model: str | None = None
    images: int | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    first_token_seconds: float | None = None
    error: str | None = None  # the code of a refusal that came after the response had begun

    @property
    def elapsed(self) -> float:
        return time.perf_counter() - self.started

    def note(self, answers: Sequence[AsyncAnswer]) -> None:
        """What the answers to this request took."""
        usage = usage_of(answers)
        self.prompt_tokens, self.completion_tokens = usage.prompt_tokens, usage.completion_tokens
        if first := answers[0].first_token:
            self.first_token_seconds = first - self.started


def record_of(request: Request) -> Record:
    record: Record = request.state.record
    return record


class Observer:
    """ASGI middleware around everything else."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        record = Record(request_id(Headers(scope=scope)), scope["method"], scope["path"])
        scope.setdefault("state", {})["record"] = record
        begun = complete = False

        async def send_with_id(message: Message) -> None:
            nonlocal begun, complete
            if message["type"] == "http.response.start":
                begun, record.status = True, message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = record.id
            complete = message["type"] == "http.response.body" and not message.get("more_body", False)
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        except ClientDisconnect:  # in the middle of its body
            pass
        except Exception as error:
            log.error("a request failed", exc_info=True, extra={"fields": {"request_id": record.id}})
            if not begun:
                await as_api_error(error).response(scope, receive, send_with_id)
        finally:
            if begun and not complete:
                record.status = GONE
            self.metrics.observe(record)
            level = logging.DEBUG if record.path in PROBED else logging.INFO
            log.log(level, "request", extra={"fields": _fields(record)})


def request_id(headers: Mapping[str, str]) -> str:
    """The caller's own, if it is one that may stand in a log; else a new one."""
    given = headers.get("x-request-id", "")
    return given if re.fullmatch(r"[A-Za-z0-9._-]{1,128}", given) else uuid.uuid4().hex


def _fields(record: Record) -> dict[str, Any]:
    fields = {
        "request_id": record.id,
        "method": record.method,
        "path": record.path[:200],  # without the query
        "status": record.status,
        "seconds": round(record.elapsed, 4),
        "model": record.model,
        "images": record.images,
        "prompt_tokens": record.prompt_tokens,
        "completion_tokens": record.completion_tokens,
        "first_token_seconds": record.first_token_seconds and round(record.first_token_seconds, 4),
        "error": record.error,
    }
    return {name: value for name, value in fields.items() if value is not None}
