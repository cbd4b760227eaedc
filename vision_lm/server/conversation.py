"""From OpenAI's messages to the turns of a conversation: who said what, and which pictures came with it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from vision_lm.errors import ImageError, RequestError
from vision_lm.prompts import CaptionLength, PromptBuilder, Turn
from vision_lm.server.schemas import AssistantMessage, ImagePart, Message, SystemMessage, TextPart

PICTURES_ALONE: CaptionLength = "normal"  # the caption that a message of pictures without a word asks for


def turns_of(messages: Sequence[Message], prompts: PromptBuilder, max_images: int) -> list[Turn]:
    """Checked turns, their pictures still as URLs. Raises RequestError and ImageError.

    Phi's prompt has no place for a system message: its text comes before the question that follows it, on a line
    of its own. Messages of the user in a row are one question.
    """
    turns: list[Turn] = []
    texts: list[str] = []  # of the question that is being gathered
    images: list[str] = []
    for number, message in enumerate(messages, start=1):
        if isinstance(message, AssistantMessage):
            if not texts and not images:
                raise RequestError(
                    f"message {number} is the assistant's and answers nothing; begin with the user's"
                )
            question = _question(texts, images, prompts)
            turns.append(Turn(question, tuple(images), _joined(message.content)))
            texts, images = [], []
        elif isinstance(message, SystemMessage):
            texts.append(_joined(message.content))
        else:
            texts.append(_joined(message.content))
            images += _urls(message.content)
    if messages[-1].role != "user":
        raise RequestError("the last message is not the user's; end with a user message to be answered")
    turns.append(Turn(_question(texts, images, prompts), tuple(images)))
    check_pictures([image for turn in turns for image in turn.images], max_images)
    return turns


def check_pictures(urls: list[str], max_images: int) -> None:
    """How many, and that each is a URL: a path of this machine must never be opened for someone else."""
    if len(urls) > max_images:
        raise RequestError(f"{len(urls)} images are given, at most {max_images} are allowed in a request")
    for url in urls:
        if not re.match(r"data:|https?://", url, re.IGNORECASE):
            start = url[:20].encode("ascii", "backslashreplace").decode()
            raise ImageError(
                f"an image is given as {start!r}; allowed: data:image/TYPE;base64,DATA, or a permitted http(s) URL"
            )


def is_remote(turns: list[Turn]) -> bool:
    """Whether a picture has to be fetched."""
    images = [image for turn in turns for image in turn.images]
    return any(isinstance(image, str) and image[:5].lower() != "data:" for image in images)


def _question(texts: list[str], images: list[str], prompts: PromptBuilder) -> str:
    if images and not any(text.strip() for text in texts):
        return prompts.caption_question(PICTURES_ALONE)
    return "\n".join(text for text in texts if text)


def _joined(content: str | list[TextPart] | list[TextPart | ImagePart]) -> str:
    if isinstance(content, str):
        return content
    return " ".join(part.text for part in content if isinstance(part, TextPart))


def _urls(content: str | list[TextPart | ImagePart]) -> list[str]:
    if isinstance(content, str):
        return []
    return [part.image_url.url for part in content if isinstance(part, ImagePart)]
