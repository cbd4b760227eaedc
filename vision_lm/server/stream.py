"""A chat's answer as server-sent events, in OpenAI's chunks; several answers come interleaved."""

from __future__ import annotations

import asyncio
import json
import logging
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import Any, Literal

from starlette.requests import ClientDisconnect
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from vision_lm.answerer import Answerer
from vision_lm.async_model import AsyncAnswer, Piece
from vision_lm.engine.stopping import FinishReason
from vision_lm.server.errors import ApiError, as_api_error
from vision_lm.server.logprobs import logprobs_of
from vision_lm.server.observe import Record
from vision_lm.server.schemas import ChatRequest
from vision_lm.server.service import timed_out, unless_gone, usage_of

log = logging.getLogger("vision_lm.server")
LAST_WORDS = 5.0  # seconds after the timeout in which a client that reads slowly may still read why


class ChatStream(StreamingResponse):
    """The response; when it ends, for whatever reason, so do the answers."""

    def __init__(
        self,
        answers: Sequence[AsyncAnswer],
        asked: ChatRequest,
        model: str,
        vlm: Answerer,
        record: Record,
        timeout: float,
    ) -> None:
        headers = {
            "Cache-Control": "no-cache",
            "X-Accel-Buffering": "no",
        }  # a proxy must not gather the pieces
        super().__init__(self._events(), headers=headers, media_type="text/event-stream")
        self.answers, self.asked, self.vlm, self.record, self.timeout = answers, asked, vlm, record, timeout
        self.deadline = asyncio.get_running_loop().time() + timeout - record.elapsed
        self.usage_wanted = bool(asked.stream_options and asked.stream_options.include_usage)
        self.head = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": model,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        left = self.deadline + LAST_WORDS - asyncio.get_running_loop().time()
        try:
            with suppress(
                ApiError
            ):  # gone, or too slow a reader: it has had its status, and what it has read
                await unless_gone(receive, self.stream_response(send), left)
        except OSError as error:  # the connection broke while we wrote
            raise ClientDisconnect from error
        finally:
            for answer in self.answers:
                answer.cancel()
            self.record.note(self.answers)

    async def _events(self) -> AsyncIterator[str]:
        """All that there is to say at a time in one piece: to send many small ones costs more than to write them."""
        text = "".join(
            self._chunk(index, {"role": "assistant", "content": ""}) for index in range(len(self.answers))
        )
        writing = len(self.answers)
        try:
            async for come in interleaved(self.answers, self.deadline):
                for index, piece in come:
                    if piece is None:
                        text += self._end(index)
                        writing -= 1
                    else:
                        text += self._chunk(index, {"content": piece.text}, piece)
                if writing:
                    yield text
                    text = ""
            if self.usage_wanted:
                text += _event(self.head | {"choices": [], "usage": usage_of(self.answers).model_dump()})
            yield text + "data: [DONE]\n\n"
        except Exception as error:
            told = timed_out(self.timeout) if isinstance(error, TimeoutError) else as_api_error(error)
            if told.status_code == 500:
                log.error("a stream failed", exc_info=True, extra={"fields": {"request_id": self.record.id}})
            self.record.error = told.body.error.code
            yield text + _event(told.body.model_dump())

    def _chunk(self, index: int, delta: dict[str, Any], piece: Piece | None = None, **more: Any) -> str:
        choice: dict[str, Any] = {
            "index": index,
            "delta": delta,
            "logprobs": None,
            "finish_reason": None,
        } | more
        if self.asked.logprobs and piece is not None:
            choice["logprobs"] = logprobs_of(piece.tokens, self.vlm.prompts).model_dump()
        chunk = self.head | {"choices": [choice]}
        return _event(chunk | {"usage": None} if self.usage_wanted else chunk)

    def _end(self, index: int) -> str:
        answer = self.answers[index].answer
        assert answer is not None
        reason = openai_reason(answer.finish_reason)
        sure, not_at_all = answer.confidence, answer.unanswerable
        return self._chunk(index, {}, finish_reason=reason, confidence=sure, unanswerable=not_at_all)


async def interleaved(
    answers: Sequence[AsyncAnswer], deadline: float
) -> AsyncIterator[list[tuple[int, Piece | None]]]:
    """Each answer's pieces, and None at its end: all that have come. Raises what ends one early, or TimeoutError.

    `deadline`: by the event loop's clock.
    """
    news: asyncio.Queue[tuple[int, Piece | None] | Exception] = asyncio.Queue()

    async def read(index: int) -> None:
        try:
            async for piece in answers[index].pieces():
                news.put_nowait((index, piece))
            news.put_nowait((index, None))
        except Exception as error:
            news.put_nowait(error)

    readers = [asyncio.create_task(read(index)) for index in range(len(answers))]
    # One timer for the stream: waiting for each piece with a time-out of its own costs as much as sending it.
    alarm = asyncio.get_running_loop().call_at(deadline, news.put_nowait, TimeoutError())
    try:
        reading = len(answers)
        while reading:
            items = [await news.get()]
            while not news.empty():
                items.append(news.get_nowait())
            come = [item for item in items if not isinstance(item, Exception)]
            if come:
                reading -= sum(piece is None for _, piece in come)
                yield come
            for item in items:
                if isinstance(item, Exception) and reading:
                    raise item
    finally:
        alarm.cancel()
        for reader in readers:
            reader.cancel()


def openai_reason(reason: FinishReason) -> Literal["stop", "length"]:
    """OpenAI knows no answers that loop: for its clients such a one has ended."""
    return "length" if reason == "length" else "stop"


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data, separators=(',', ':'))}\n\n"
