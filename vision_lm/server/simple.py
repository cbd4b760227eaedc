"""POST /v1/caption and /v1/ask: one picture, as JSON with a URL or as an uploaded file."""

from __future__ import annotations

import json
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from pydantic import BaseModel, ValidationError
from starlette.datastructures import FormData, UploadFile

from vision_lm.answer import Answer
from vision_lm.answerer import ANSWER_TOKENS, Answerer, Task
from vision_lm.prompts import Turn
from vision_lm.server import second_look
from vision_lm.server.chat import REFUSALS
from vision_lm.server.conversation import check_pictures
from vision_lm.server.errors import ApiError, documented, invalid
from vision_lm.server.gate import FORM, JSON
from vision_lm.server.observe import record_of
from vision_lm.server.schemas import (
    AskFields,
    AskRequest,
    CaptionAnswer,
    CaptionFields,
    CaptionRequest,
    ImageField,
    SimpleAnswer,
    Usage,
)
from vision_lm.server.service import Service, unless_gone, usage_of

MAX_FIELDS = 64  # of a form
REPEATED = {"stop", "choices"}  # fields of a form that may come several times

router = APIRouter()
Model = TypeVar("Model", bound=BaseModel)


def request_body(as_json: type[BaseModel], fields: type[BaseModel]) -> dict[str, Any]:
    """The OpenAPI description of both ways to send a picture."""
    form = fields.model_json_schema()
    form["properties"] = {"image": {"type": "string", "format": "binary"}} | form["properties"]
    form["required"] = ["image", *form.get("required", [])]
    content = {JSON: {"schema": as_json.model_json_schema()}, FORM: {"schema": form}}
    return {"requestBody": {"required": True, "content": content}}


@router.post(
    "/v1/caption",
    response_model=CaptionAnswer,
    responses=documented(*REFUSALS),
    openapi_extra=request_body(CaptionRequest, CaptionFields),
    summary="Describe a picture",
)
async def caption(request: Request) -> CaptionAnswer:
    """In whole sentences, none of them twice. `length`: short, normal or long. A checked one counts as eight answers."""
    service: Service = request.app.state.service
    fields, image = await read(request, CaptionFields)
    name, vlm = service.model(fields.model)
    service.check_max_tokens(fields.max_tokens)
    question, task = vlm.caption_task(fields.length, fields.options())
    if fields.checked:
        request.state.slot.widen(second_look.AT_ONCE - 1)
    turn = Turn(question, (image,))
    answer, usage = await answered(request, name, vlm, turn, task, checked=fields.checked)
    return CaptionAnswer(**said(name, answer, usage), unconfirmed=list(answer.unconfirmed))


@router.post(
    "/v1/ask",
    response_model=SimpleAnswer,
    responses=documented(*REFUSALS),
    openapi_extra=request_body(AskRequest, AskFields),
    summary="Answer a question about a picture",
)
async def ask(request: Request) -> SimpleAnswer:
    """The answer may be given a form: `json_schema`, or `choices`."""
    service: Service = request.app.state.service
    fields, image = await read(request, AskFields)
    name, vlm = service.model(fields.model)
    service.check_max_tokens(fields.max_tokens)
    task = vlm.task(ANSWER_TOKENS, fields.options())
    answer, usage = await answered(request, name, vlm, Turn(fields.question, (image,)), task)
    return SimpleAnswer(**said(name, answer, usage))


async def answered(
    request: Request, name: str, vlm: Answerer, turn: Turn, task: Task, *, checked: bool = False
) -> tuple[Answer, Usage]:
    """The answer about one picture, `checked` or as it was written, and what the writing took."""
    service: Service = request.app.state.service
    record = record_of(request)
    record.model, record.images = name, 1

    async def complete() -> tuple[Answer, Usage]:
        pictures = service.pictures(vlm)
        (one,) = await service.submit(vlm, [([turn], task)], pictures)
        try:
            answer = await one.whole()
        finally:
            one.cancel()
        record.note([one])
        if checked:
            answer = await second_look.confirmed(service, vlm, turn.images[0], answer, pictures)
        return answer, usage_of([one])

    return await unless_gone(request.receive, complete(), service.settings.timeout)


def said(name: str, answer: Answer, usage: Usage) -> dict[str, Any]:
    """The fields of a SimpleAnswer."""
    return {
        "model": name,
        "text": answer.text,
        "confidence": answer.confidence,
        "unanswerable": answer.unanswerable,
        "finish_reason": answer.finish_reason,
        "points": [one._asdict() for one in answer.points],
        "usage": usage,
    }


async def read(request: Request, schema: type[Model]) -> tuple[Model, str | bytes]:
    """The checked fields and the picture of either kind of body. Raises ApiError and ImageError."""
    if not request.headers["content-type"].lower().startswith(JSON):
        fields, upload = await read_form(request)
        return checked(schema, fields), upload
    fields = await read_json(request)
    picture = checked(ImageField, {name: fields.pop(name) for name in ("image",) if name in fields})
    check_pictures([picture.image], 1)
    return checked(schema, fields), picture.image


async def read_json(request: Request) -> dict[str, Any]:
    try:
        given = json.loads(await request.body())
    except (ValueError, RecursionError) as error:
        reason = getattr(error, "msg", type(error).__name__)
        raise invalid([{"type": "json_invalid", "ctx": {"error": reason}}]) from None
    if not isinstance(given, dict):
        raise ApiError(422, f"the body is a {type(given).__name__}; give a JSON object", "dict_type")
    return given


async def read_form(request: Request) -> tuple[dict[str, Any], bytes]:
    """A form's fields, and the bytes of the picture in it."""
    try:
        form = await request.form(max_files=1, max_fields=MAX_FIELDS)
    except ValueError:  # of the parser; some versions of starlette pass it on as it is
        raise _bad_form("the body is no valid form; send multipart/form-data with its boundary") from None
    try:
        return await fields_and_picture(form)
    finally:
        await form.close()  # with it goes the file on disk that a large upload needs


async def fields_and_picture(form: FormData) -> tuple[dict[str, Any], bytes]:
    uploads: list[UploadFile] = []
    fields: dict[str, Any] = {}
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            if name != "image":
                raise _bad_form(f"the file is in the field {name[:40]!r}; put it in 'image'")
            uploads.append(value)
        elif name in REPEATED:
            fields.setdefault(name, []).append(value)
        elif name in fields:
            raise _bad_form(f"the field {name[:40]!r} stands twice; give it once")
        else:
            fields[name] = value
    if not uploads:
        raise _bad_form("there is no picture; upload a file in the field 'image'")
    media_type = (uploads[0].content_type or "application/octet-stream").lower()
    if not media_type.startswith(("image/", "application/octet-stream")):
        message = (
            f"the file's Content-Type is {media_type[:60]!r}; allowed: image/*, application/octet-stream"
        )
        raise ApiError(415, message, "unsupported_image", param="image")
    return fields, await uploads[0].read()


def checked(schema: type[Model], given: Any) -> Model:
    try:
        return schema.model_validate(given)
    except ValidationError as error:
        raise invalid(error.errors(include_input=False, include_url=False)) from None


def _bad_form(message: str) -> ApiError:
    return ApiError(422, message, "invalid_form", param="image")
