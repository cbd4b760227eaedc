"""The models in this very process, through the Python API."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from demo.backend import Reply, Settings, Writing
from vision_lm.answer import Answer, AnswerStream
from vision_lm.checking import Check, first_word
from vision_lm.engine import Options
from vision_lm.explain import Explanation
from vision_lm.model import VisionLM
from vision_lm.pictures import Pictures
from vision_lm.prompts import CaptionLength, Turn


class InProcess:
    """Models by name. Requests of all visitors are batched by each model's engine."""

    def __init__(self, models: Mapping[str, VisionLM]) -> None:
        self._models = dict(models)

    @property
    def models(self) -> list[str]:
        return list(self._models)

    @property
    def place(self) -> str:
        return f"on this machine ({next(iter(self._models.values())).device})"

    def caption(self, picture: Path, length: CaptionLength, settings: Settings) -> Writing:
        vlm = self._models[settings.model]
        stream = vlm.stream_caption(picture, length, **_options(settings))
        yield from _checked(vlm, picture, stream) if settings.checked else _written(stream)

    def answer(self, turns: Sequence[Turn], settings: Settings) -> Writing:
        vlm = self._models[settings.model]
        yield from _written(vlm.stream_chat(_messages(turns), **_options(settings)))

    def explain(self, turns: Sequence[Turn], picture: int, answer: str, settings: Settings) -> Explanation:
        return self._models[settings.model].explain_chat(_messages(turns), picture, answer=answer)

    def explain_caption(
        self, picture: Path, length: CaptionLength, caption: str, settings: Settings
    ) -> Explanation:
        vlm = self._models[settings.model]
        return vlm.explain(picture, vlm.prompts.caption_question(length), answer=caption)


def _written(stream: AnswerStream) -> Writing:
    text = ""
    try:
        for piece in stream:
            text += piece
            yield Reply(text)
    finally:
        stream.close()
    assert stream.answer is not None
    yield _reply(stream.answer)


def _checked(vlm: VisionLM, picture: Path, stream: AnswerStream) -> Writing:
    """In one piece, since what is taken back should not be said; until then empty replies, at which it can be stopped."""
    try:
        for _ in stream:
            yield Reply("")
    finally:
        stream.close()
    assert stream.answer is not None
    check, task, pictures = Check(vlm, picture, stream.answer), first_word(vlm), Pictures(vlm.config.vision)
    waiting = [vlm.submit(turns, task, pictures) for turns in check.conversations]
    replies = []
    for one in waiting:
        yield Reply("")
        replies.append(one.answer())
    yield _reply(check.corrected(replies))


def _reply(answer: Answer) -> Reply:
    return Reply(
        answer.text, answer.confidence, answer.finish_reason, answer.unanswerable, answer.unconfirmed
    )


def _messages(turns: Sequence[Turn]) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    for turn in turns:
        pictures = [{"type": "image", "image": picture} for picture in turn.images]
        messages.append({"role": "user", "content": [*pictures, {"type": "text", "text": turn.question}]})
        if turn.answer is not None:
            messages.append({"role": "assistant", "content": turn.answer})
    return messages


def _options(settings: Settings) -> Options:
    options: Options = {"temperature": settings.temperature}
    if settings.max_tokens is not None:
        options["max_tokens"] = settings.max_tokens
    return options
