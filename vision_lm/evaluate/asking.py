"""The model's side of an evaluation: items in, predictions out, as many under way as asked for."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from vision_lm.answerer import ANSWER_TOKENS, Pending
from vision_lm.answerer import Task as Form
from vision_lm.engine import Options
from vision_lm.errors import VisionLMError
from vision_lm.evaluate.predictions import Failure, Prediction
from vision_lm.evaluate.tasks import Item
from vision_lm.model import VisionLM
from vision_lm.pictures import Pictures
from vision_lm.prompts import CaptionLength, Turn

Ask = Callable[[Sequence[Item], bool], Iterator[Prediction | Failure]]


@dataclass(frozen=True)
class Asking:
    """Asks one model. Greedy, so neither order nor company changes an answer."""

    vlm: VisionLM
    prompt: str
    length: CaptionLength
    max_tokens: int | None
    under_way: int

    def __call__(self, items: Sequence[Item], blind: bool) -> Iterator[Prediction | Failure]:
        """In the items' order. `blind`: the picture is left out of the prompt."""
        pictures = Pictures(self.vlm.config.vision, self.vlm.allow_url_hosts)
        options: Options = {} if self.max_tokens is None else {"max_tokens": self.max_tokens}
        request, caption = self.vlm.caption_task(self.length, options)
        answer = self.vlm.task(ANSWER_TOKENS, options)
        waiting: deque[tuple[Item, Pending | VisionLMError]] = deque()
        try:
            for item in items:
                text = request if item.question is None else self._put(item.question)
                asked = [*((self._put(question), said) for question, said in item.before), (text, None)]
                images = [() if blind else (item.image,), *[()] * len(item.before)]  # with the first turn
                turns = [Turn(text, shown, said) for (text, said), shown in zip(asked, images, strict=True)]
                form = caption if item.question is None else answer
                waiting.append((item, self._submit(turns, form, pictures)))
                if len(waiting) >= self.under_way:
                    yield _outcome(*waiting.popleft())
            while waiting:
                yield _outcome(*waiting.popleft())
        finally:
            for _, one in waiting:
                if isinstance(one, Pending):
                    one.ticket.cancel()

    def _put(self, question: str) -> str:
        return self.prompt.replace("{question}", question)

    def _submit(self, turns: Sequence[Turn], form: Form, pictures: Pictures) -> Pending | VisionLMError:
        try:
            return self.vlm.submit(turns, form, pictures)
        except VisionLMError as error:
            return error.with_traceback(None)


def _outcome(item: Item, one: Pending | VisionLMError) -> Prediction | Failure:
    try:
        if isinstance(one, VisionLMError):
            raise one
        answer = one.answer()
    except VisionLMError as error:
        return Failure(item.id, str(error))
    held = None if item.question is None else answer.unanswerable
    return Prediction(item.id, answer.text, answer.confidence, answer.finish_reason, held)


def identity(vlm: VisionLM) -> dict[str, Any]:
    """What of a model its answers depend on."""
    from vision_lm.batch.identity import digest

    return {
        "model": f"{vlm.config.name} {digest(vlm.checkpoint)}",
        "dtype": str(vlm.dtype).removeprefix("torch."),
        "device": vlm.device.type,
    }
