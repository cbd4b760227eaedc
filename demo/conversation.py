"""A conversation about pictures as the page keeps it: what the model is asked, and what the chat shows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import gradio as gr

from demo.backend import Backend, Reply, Settings, Writing
from demo.meter import meter, taken_back
from demo.picture import Picture
from vision_lm.answer import too_unsure
from vision_lm.explain import Explanation
from vision_lm.prompts import CaptionLength, Turn


@dataclass(frozen=True)
class Question:
    """Words about all pictures so far, and the pictures that came with them."""

    text: str
    pictures: tuple[Picture, ...] = ()


@dataclass(frozen=True)
class CaptionRequest:
    """A caption of one picture alone, whatever was said before."""

    picture: Picture
    length: CaptionLength
    new: bool  # the picture came with the request

    @property
    def text(self) -> str:
        return {"short": "Describe it briefly.", "normal": "Describe it.", "long": "Describe it in detail."}[
            self.length
        ]

    @property
    def pictures(self) -> tuple[Picture, ...]:
        return (self.picture,) if self.new else ()


@dataclass(frozen=True)
class Exchange:
    """What was asked, and the answer so far."""

    asked: Question | CaptionRequest
    reply: Reply = Reply("")


@dataclass(frozen=True)
class Conversation:
    exchanges: tuple[Exchange, ...] = ()

    @property
    def last(self) -> Exchange:
        return self.exchanges[-1]

    @property
    def before(self) -> Conversation:
        """Without the last exchange."""
        return Conversation(self.exchanges[:-1])

    @property
    def pictures(self) -> list[Picture]:
        """All, in the order in which they came."""
        return [picture for one in self.exchanges for picture in one.asked.pictures]

    @property
    def asked_about(self) -> list[Picture]:
        """Those that the last answer is about."""
        asked = self.last.asked
        return [asked.picture] if isinstance(asked, CaptionRequest) else self.pictures

    def ask(self, asked: Question | CaptionRequest) -> Conversation:
        return Conversation((*self.exchanges, Exchange(asked)))

    def reply(self, reply: Reply) -> Conversation:
        """The same with this as the last exchange's answer."""
        return Conversation((*self.before.exchanges, replace(self.last, reply=reply)))

    def turns(self) -> list[Turn]:
        """What the model is asked: questions and answers, without captions, whose pictures join the next question."""
        turns: list[Turn] = []
        pictures: list[Picture] = []
        for one in self.exchanges:
            pictures += one.asked.pictures
            if isinstance(one.asked, Question):
                turns.append(Turn(one.asked.text, tuple(each.path for each in pictures), one.reply.text))
                pictures.clear()
        return [*turns[:-1], replace(turns[-1], answer=None)]

    def write(self, backend: Backend, settings: Settings) -> Writing:
        """The answer to what was asked last."""
        asked = self.last.asked
        if isinstance(asked, CaptionRequest):
            return backend.caption(asked.picture.path, asked.length, settings)
        return backend.answer(self.turns(), settings)

    def explain(self, picture: int, backend: Backend, settings: Settings) -> Explanation:
        """Where in one of the pictures `asked_about`, counted from 0, the last answer comes from."""
        asked, said = self.last.asked, self.last.reply.text
        if isinstance(asked, CaptionRequest):
            return backend.explain_caption(asked.picture.path, asked.length, said, settings)
        return backend.explain(self.turns(), picture, said, settings)

    def messages(self) -> list[dict[str, Any]]:
        """As gr.Chatbot takes them."""
        shown: list[dict[str, Any]] = []
        count = 0
        for one in self.exchanges:
            said: list[Any] = [one.asked.text]
            if one.asked.pictures:
                figures = [each.figure(count + n) for n, each in enumerate(one.asked.pictures, start=1)]
                said.insert(0, gr.HTML("".join(figures)))
                count += len(figures)
            shown.append({"role": "user", "content": said})
            if one.reply.finish_reason is not None:
                answer: list[Any] = [one.reply.text or "(no answer)"]
                if one.reply.confidence is not None:
                    sure = meter(one.reply.confidence, too_unsure(one.reply.text, one.reply.unanswerable))
                    answer.append(gr.HTML(taken_back(one.reply.unconfirmed) + sure))
                shown.append({"role": "assistant", "content": answer})
            elif one.reply.text:
                shown.append({"role": "assistant", "content": one.reply.text})
        return shown
