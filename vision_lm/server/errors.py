"""Every refusal in the shape that OpenAI's clients know: {"error": {message, type, param, code}}."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from vision_lm.errors import (
    EngineGoneError,
    ImageError,
    ImageTooLargeError,
    RequestError,
    UnsupportedImageError,
    VisionLMError,
)

MESSAGE_CHARACTERS = 500
ROLES = ("system", "developer", "user", "assistant")


class Error(BaseModel):
    """What is wrong, in one line, and what to do."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    """The body of every response that is no success."""

    error: Error


class ApiError(HTTPException):
    """A refusal. (An HTTPException, so that it passes through FastAPI's reading of a body.)"""

    def __init__(
        self,
        status: int,
        message: str,
        code: str,
        *,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, dict(headers or {}))
        self.body = error_body(status, message, code, param)

    @property
    def response(self) -> JSONResponse:
        return JSONResponse(self.body.model_dump(), self.status_code, self.headers)


def error_body(status: int, message: str, code: str, param: str | None = None) -> ErrorBody:
    # A lone surrogate, which JSON can spell, has no bytes and could not be sent back; pydantic repeats a tag's NULs.
    message = " ".join(message.encode(errors="backslashreplace").decode().split())[:MESSAGE_CHARACTERS]
    message = "".join(character if character.isprintable() else "\ufffd" for character in message)
    return ErrorBody(error=Error(message=message, type=_type(status), param=param, code=code))


def as_api_error(error: Exception) -> ApiError:
    """What the client is told of an error raised anywhere."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, UnsupportedImageError):
        return ApiError(415, str(error), "unsupported_image")
    if isinstance(error, ImageTooLargeError):
        return ApiError(413, str(error), "image_too_large")
    if isinstance(error, ImageError):
        return ApiError(400, str(error), "invalid_image")
    if isinstance(error, RequestError):
        return ApiError(400, str(error), "invalid_request")
    if isinstance(error, EngineGoneError):
        return ApiError(503, str(error), "engine_gone")
    if isinstance(error, VisionLMError):  # the model's fault, such as damaged weights
        return ApiError(500, str(error), "model_error")
    return ApiError(
        500, "the server failed; its log has the reason under this request's id", "internal_error"
    )


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """These refusals, for the OpenAPI document."""
    return {status: {"model": ErrorBody, "description": HTTPStatus(status).phrase} for status in statuses}


def add_handlers(app: FastAPI) -> None:
    """Make FastAPI's own refusals look like ours."""
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _validation)
    app.add_exception_handler(VisionLMError, _ours)


async def _http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    if isinstance(error, ApiError):
        return error.response
    status, headers = error.status_code, error.headers
    if status == 404:
        message = f"there is no {request.url.path}; see /openapi.json for what there is"
        return ApiError(status, message, "not_found", headers=headers).response
    if status == 405:
        allowed = (headers or {}).get("Allow", "another method")
        message = f"{request.method} is not allowed on {request.url.path}; use {allowed}"
        return ApiError(status, message, "method_not_allowed", headers=headers).response
    return ApiError(status, f"{error.detail}; give a valid body", "malformed_body", headers=headers).response


async def _validation(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    return invalid(error.errors()).response


async def _ours(_: Request, error: Exception) -> JSONResponse:
    return as_api_error(error).response


def invalid(errors: Any) -> ApiError:
    """Pydantic's findings in one line: the most exact one, and how many more. What was given is never repeated."""
    first = max(errors, key=lambda error: len(error.get("loc", ())))
    if first["type"] == "json_invalid":
        reason = first.get("ctx", {}).get("error", "")
        return ApiError(400, f"the body is not valid JSON ({reason}); give a JSON object", "malformed_body")
    param = field_name(first["loc"]) or None
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    where = param or "the body"
    return ApiError(422, f"{where}: {first['msg']}{more}; see /openapi.json", first["type"], param=param)


def field_name(place: Sequence[int | str]) -> str:
    """Where in the body it is: without the branches of unions that pydantic tried (a type, a message's role)."""
    names = [
        part
        for before, part in zip(("", *place), place, strict=False)
        if not (part in ("body", "str") or "[" in str(part) or (isinstance(before, int) and part in ROLES))
    ]
    return ".".join(map(str, names))


def _type(status: int) -> str:
    types = {
        401: "authentication_error",
        403: "permission_error",
        404: "not_found_error",
        429: "rate_limit_error",
        503: "overloaded_error",
        504: "timeout_error",
    }
    return types.get(status, "invalid_request_error" if status < 500 else "server_error")
