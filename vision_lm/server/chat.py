"""POST /v1/chat/completions, whole or streamed."""

from __future__ import annotations

import time
import uuid
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request

from vision_lm.answer import Answer
from vision_lm.answerer import ANSWER_TOKENS, Answerer, Task
from vision_lm.async_model import AsyncAnswer
from vision_lm.engine import Options
from vision_lm.server.conversation import turns_of
from vision_lm.server.errors import ApiError, documented
from vision_lm.server.logprobs import logprobs_of, tokens_of
from vision_lm.server.observe import record_of
from vision_lm.server.schemas import (
    AnswerMessage,
    ChatCompletion,
    ChatRequest,
    Choice,
    JSONObjectFormat,
    JSONSchemaFormat,
)
from vision_lm.server.service import Service, unless_gone, usage_of
from vision_lm.server.stream import ChatStream, openai_reason

REFUSALS = (400, 401, 403, 404, 408, 413, 415, 422, 429, 500, 503, 504)
STREAM = {
    "text/event-stream": {
        "schema": {"type": "string"},
        "example": 'data: {"object": "chat.completion.chunk", ...}\n\ndata: [DONE]\n\n',
    }
}
router = APIRouter()


@router.post(
    "/v1/chat/completions",
    response_model=ChatCompletion,
    responses={
        200: {"content": STREAM, "description": "The answer; with stream, events."},
        **documented(*REFUSALS),
    },
    summary="Answer a conversation about pictures",
)
async def chat_completions(body: ChatRequest, request: Request) -> Any:
    """As OpenAI's endpoint of this name. Without `temperature` the answer is greedy: the same every time."""
    service: Service = request.app.state.service
    record = record_of(request)
    name, vlm = service.model(body.model)
    tasks = tasks_of(body, vlm, service)
    turns = turns_of(body.messages, vlm.prompts, service.settings.max_images)
    request.state.slot.widen(len(tasks) - 1)
    record.model, record.images = name, sum(len(turn.images) for turn in turns)
    timeout = service.settings.timeout

    async def submit() -> list[AsyncAnswer]:
        return await service.submit(vlm, [(turns, task) for task in tasks], service.pictures(vlm))

    if body.stream:
        answers = await unless_gone(request.receive, submit(), timeout)
        return ChatStream(answers, body, name, vlm, record, timeout)

    async def complete() -> ChatCompletion:
        answers = await submit()
        try:
            choices = [choice(n, await one.whole(), body, vlm) for n, one in enumerate(answers)]
        finally:
            for one in answers:
                one.cancel()
        record.note(answers)
        return completion(name, choices, answers)

    return await unless_gone(request.receive, complete(), timeout)


def tasks_of(body: ChatRequest, vlm: Answerer, service: Service) -> list[Task]:
    """How each of the `n` answers is to be written: with a seed, the answers have it and those after it."""
    options = options_of(body)
    service.check_max_tokens(options.get("max_tokens"))
    task = vlm.task(ANSWER_TOKENS, options)
    seed = options.get("seed")
    return [
        task if seed is None else replace(task, sampling=replace(task.sampling, seed=seed + number))
        for number in range(body.n or 1)
    ]


def options_of(body: ChatRequest) -> Options:
    options = body.options()
    if body.max_completion_tokens is not None:
        options["max_tokens"] = body.max_completion_tokens
    if body.top_logprobs and not body.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs: true", "invalid_request", param="top_logprobs")
    if body.top_logprobs:
        options["top_logprobs"] = body.top_logprobs
    if isinstance(body.response_format, JSONObjectFormat):
        options["json_schema"] = True
    elif isinstance(body.response_format, JSONSchemaFormat):
        options["json_schema"] = body.response_format.json_schema.schema_
    return options


def choice(index: int, answer: Answer, body: ChatRequest, vlm: Answerer) -> Choice:
    return Choice(
        index=index,
        message=AnswerMessage(content=answer.text),
        logprobs=logprobs_of(tokens_of(answer), vlm.prompts) if body.logprobs else None,
        finish_reason=openai_reason(answer.finish_reason),
        confidence=answer.confidence,
        unanswerable=answer.unanswerable,
    )


def completion(name: str, choices: list[Choice], answers: list[AsyncAnswer]) -> ChatCompletion:
    return ChatCompletion(
        id=f"chatcmpl-{uuid.uuid4().hex}",
        created=int(time.time()),
        model=name,
        choices=choices,
        usage=usage_of(answers),
    )
