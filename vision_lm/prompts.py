"""From a conversation to token ids: where the image tokens go, what is asked, what is refused."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from vision_lm.config import PromptConfig
from vision_lm.errors import RequestError
from vision_lm.pointing import Point, point_token

MAX_QUESTION_CHARACTERS = 8_000
PLACEHOLDER = "<image>"
CaptionLength = Literal["short", "normal", "long"]


@dataclass(frozen=True)
class Turn:
    """One question with the pictures that come with it, and the answer where it is already given."""

    question: str
    images: tuple[Any, ...] = ()
    answer: str | None = None


@dataclass(frozen=True)
class Prompt:
    """Token ids with a run of `image_token_id` for every picture, in order."""

    ids: list[int]  # (T,)
    images: tuple[Any, ...] = field(default=())


class PromptBuilder:
    """Turns conversations into prompts for one checkpoint's tokenizer and template."""

    def __init__(self, tokenizer: Any, config: PromptConfig, tokens_per_image: int) -> None:
        self.tokenizer = tokenizer
        self.config = config
        self.tokens_per_image = tokens_per_image
        # Special tokens typed by a user are ordinary text: nobody ends the model's turn from inside a question.
        tokenizer.encode_special_tokens = True

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)

    def caption_question(self, length: CaptionLength) -> str:
        """The request that stands for a caption of this length."""
        requests = {
            "short": self.config.caption_short,
            "normal": self.config.caption_normal,
            "long": self.config.caption_long,
        }
        if length not in requests:
            raise RequestError(f"caption length {length!r} is unknown; choose short, normal or long")
        return requests[length]

    def question_ids(self, turn: Turn, *, first: bool = False) -> list[int]:
        """The turn's question and image tokens, up to where the answer begins; `first`: and what opens a conversation."""
        system = self.config.system if first else ""
        ids = [] if self.config.bos_token_id is None or not first else [self.config.bos_token_id]
        text = ""  # what stands between two pictures is encoded as one
        for piece in self._pieces(turn, system):
            if piece is not None:
                text += piece
                continue
            ids += self.encode(text) + [self.config.image_token_id] * self.tokens_per_image
            text = ""
        return ids + self.encode(text)

    def _pieces(self, turn: Turn, system: str) -> Iterator[str | None]:
        """The turn's texts in order, None for each picture."""
        before, inside, after = self.config.question.partition("{images}")
        if not inside:
            before, after = "", before
        around = self.config.image.format(image="\0").split("\0")
        yield system + before.format()
        for _ in turn.images:
            yield around[0]
            yield None
            yield around[1]
        yield after.format(question=check_question(turn.question))

    def answer_ids(self, answer: str, points: Sequence[Point] = ()) -> list[int]:
        """The answer and the token that ends it, with its points' tokens among its own if the checkpoint has such."""
        _check_unicode(answer, "the answer")
        text = self.config.answer.format(answer=answer)
        ids: list[int] = []
        start = 0
        if (grid := self.config.points) is not None:
            lead = len(self.config.answer.partition("{answer}")[0])
            for point in points:
                end = lead + point.at if point.at else 0
                ids += [*self.encode(text[start:end]), point_token(point, grid)]
                start = end
        return [*ids, *self.encode(text[start:]), self.config.eos_token_id]

    def build(self, turns: Sequence[Turn]) -> Prompt:
        """A prompt that ends where the last turn's answer begins."""
        if not turns:
            raise RequestError("the conversation is empty; give at least one question")
        ids: list[int] = []
        images: list[Any] = []
        for position, turn in enumerate(turns):
            ids += self.question_ids(turn, first=position == 0)
            images += turn.images
            if position < len(turns) - 1:
                if turn.answer is None:
                    raise RequestError(
                        "a question in the middle of the conversation has no answer; roles alternate user, assistant"
                    )
                ids += self.answer_ids(turn.answer)
        return Prompt(ids, tuple(images))


def check_question(question: str) -> str:
    """A stripped question, or a RequestError that says what is wrong with it."""
    if not isinstance(question, str):
        raise RequestError(f"the question is {type(question).__name__}, not text; give a string")
    stripped = question.strip()
    if not stripped:
        raise RequestError("the question is empty; write what you want to know about the image")
    if len(stripped) > MAX_QUESTION_CHARACTERS:
        raise RequestError(
            f"the question has {len(stripped):,} characters, at most {MAX_QUESTION_CHARACTERS:,} are allowed; shorten it"
        )
    if PLACEHOLDER in stripped:
        raise RequestError(
            f"the question contains {PLACEHOLDER!r}, which marks a picture's place; leave it out and give pictures as images"
        )
    _check_unicode(stripped, "the question")
    return stripped


def _check_unicode(text: str, what: str) -> None:
    """A lone surrogate is no character and has no tokens: half of an emoji, or bytes that are no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestError(
            f"{what} has {ascii(text[error.start])} at place {error.start + 1}, which is no character; give valid Unicode text"
        ) from None


def turns_from_messages(messages: Sequence[dict[str, Any]]) -> list[Turn]:
    """Chat messages in the common layout -> turns.

    A message is `{"role": "user"|"assistant", "content": text or parts}`; a part is text,
    `{"type": "text", "text": ...}` or `{"type": "image", "image": source}`.
    """
    turns: list[Turn] = []
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, dict):
            raise RequestError(
                f"message {number} is {type(message).__name__}, not a dict with role and content"
            )
        role, content = message.get("role"), message.get("content")
        expected = "user" if number % 2 else "assistant"
        if role != expected:
            raise RequestError(
                f"message {number} has role {role!r}, expected {expected!r}; roles alternate, beginning with user"
            )
        texts, images = _parts(content, number)
        if role == "user":
            turns.append(Turn(" ".join(texts), tuple(images)))
        elif images:
            raise RequestError(
                f"message {number} is the assistant's and holds an image; only user messages may"
            )
        else:
            turns[-1] = Turn(turns[-1].question, turns[-1].images, " ".join(texts))
    if turns and turns[-1].answer is not None:
        raise RequestError("the last message is the assistant's; end with a user message to be answered")
    return turns


def _parts(content: Any, number: int) -> tuple[list[str], list[Any]]:
    texts: list[str] = []
    images: list[Any] = []
    parts = [content] if isinstance(content, (str, dict)) else content
    if not isinstance(parts, (list, tuple)):
        raise RequestError(
            f"message {number} has content of type {type(content).__name__}; give text or a list of parts"
        )
    for part in parts:
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif isinstance(part, dict) and part.get("type") == "image" and "image" in part:
            images.append(part["image"])
        else:
            raise RequestError(
                f"message {number} has a part that is neither text nor image: {str(part)[:60]!r}"
            )
    return texts, images
