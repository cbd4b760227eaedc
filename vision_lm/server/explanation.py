"""POST /v1/explain: where in a picture an answer comes from."""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError
from dataclasses import replace
from typing import Any

from anyio import CapacityLimiter
from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from vision_lm.answerer import ANSWER_TOKENS
from vision_lm.explain import AT_ONCE, GRID, Explanation, check, explain
from vision_lm.prompts import CaptionLength
from vision_lm.server.chat import REFUSALS
from vision_lm.server.conversation import turns_of
from vision_lm.server.errors import documented
from vision_lm.server.observe import record_of
from vision_lm.server.schemas import EXAMPLE_PICTURE, MAX_MESSAGES, Given, Message
from vision_lm.server.service import Service, in_thread, unless_gone

FINEST = 8  # cells a side: 164 answers
DIGITS = 6
EXAMPLE: dict[str, Any] = {
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What colour is it?"},
                {"type": "image_url", "image_url": {"url": EXAMPLE_PICTURE}},
            ],
        }
    ],
    "grid": 2,
}
router = APIRouter()


class ExplainRequest(Given):
    """A conversation as in a chat, and what of its answer is to be explained."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE]})

    model: str | None = Field(None, description="a name of /v1/models; the first if none is given")
    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES)
    caption: CaptionLength | None = Field(
        None,
        description="explain a caption of this length: the last message holds the picture, and needs no words",
    )
    answer: str | None = Field(None, description="a text to explain instead of the model's own answer")
    picture: int = Field(0, ge=0, description="which of the conversation's pictures, counted from 0")
    grid: int = Field(GRID, ge=2, le=FINEST, description="cells a side; costs 2 (grid + 1)^2 + 2 answers")


class ExplainedAnswer(BaseModel):
    """Where in the picture the answer comes from."""

    model: str
    answer: str
    confidence: float = Field(ge=0, le=1)
    words: str = Field(description="the finding in a sentence")
    decisive: bool = Field(
        description="whether some part of the picture brings a tenth of the answer's probability"
    )
    # Lists of a length: tuples are described by "prefixItems", which many readers of OpenAPI do not know.
    size: list[int] = Field(
        min_length=2, max_length=2, description="of the picture, upright: width and height in pixels"
    )
    box: list[float] = Field(
        min_length=4,
        max_length=4,
        description="what of the picture the model sees: left, top, right, bottom in its pixels",
    )
    cells: list[list[float]] = Field(
        description="rows from the top, over the box; -1 to 1: how much of the answer's probability each cell brings"
    )
    windows: list[list[float]] = Field(
        description="(grid + 1) rows: the same for the windows, two cells a side, that were hidden and shown"
    )


@router.post(
    "/v1/explain",
    response_model=ExplainedAnswer,
    responses=documented(*REFUSALS),
    summary="Show where in a picture an answer comes from",
)
async def explain_answer(body: ExplainRequest, request: Request) -> ExplainedAnswer:
    """For the answer to the conversation's last message. It counts as sixteen answers in the queue."""
    service: Service = request.app.state.service
    record = record_of(request)
    name, vlm = service.model(body.model)
    turns = turns_of(body.messages, vlm.prompts, service.settings.max_images)
    own = vlm.task(ANSWER_TOKENS, {})
    if body.caption is not None:
        question, own = vlm.caption_task(body.caption, {})
        turns[-1] = replace(turns[-1], question=question)
    request.state.slot.widen(AT_ONCE - 1)
    record.model, record.images = name, sum(len(turn.images) for turn in turns)
    check(body.answer, body.grid, body.picture, record.images)

    async def complete() -> ExplainedAnswer:
        async with service.explaining:  # pictures are opened whole: no more of them than are explained
            return await explained()

    async def explained() -> ExplainedAnswer:
        opened = await service.opened(turns)
        given_up = threading.Event()

        def go_on() -> None:
            if given_up.is_set():
                raise CancelledError

        def work() -> Explanation:
            return explain(vlm, opened, body.picture, body.answer, body.grid, own, go_on)

        found = await in_thread(work, CapacityLimiter(1), given_up.set)
        return ExplainedAnswer(
            model=name,
            answer=found.answer.text,
            confidence=found.answer.confidence,
            words=str(found),
            decisive=found.decisive,
            size=list(found.image.size),
            box=list(found.box),
            cells=found.cells.astype(float).round(DIGITS).tolist(),
            windows=found.windows.astype(float).round(DIGITS).tolist(),
        )

    return await unless_gone(request.receive, complete(), service.settings.timeout)
