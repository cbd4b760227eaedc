"""A chat template in Jinja as our prompt: what a conversation becomes tells what the template is made of.

It is rendered as transformers does, in a sandbox that gives it nothing but the conversation.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vision_lm.errors import CheckpointError
from vision_lm.importers.source import Source, read_json
from vision_lm.model_files import one_line

IMAGE = "<image>"
_FIRST, _ANSWER, _SECOND = "zqFIRSTqz", "zqANSWERqz", "zqSECONDqz"  # words that no template has of its own


def find_template(folder: Path) -> str | None:
    """The template of a folder, in any of the three places where transformers keeps it."""
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    for name in ("chat_template.json", "processor_config.json", "tokenizer_config.json"):
        template = read_json(folder / name).get("chat_template") if (folder / name).is_file() else None
        if isinstance(template, str):
            return template
    return None


def prompt_settings(source: Source, template: str, end: str) -> dict[str, str]:
    """The template as settings of a PromptConfig. `end`: the text of the token that ends an answer.

    Raises CheckpointError for a template that says more than those can.
    """
    with_picture = [{"type": "image"}, {"type": "text", "text": _FIRST}]
    answer, second = ([{"type": "text", "text": text}] for text in (_ANSWER, _SECOND))
    whole = _render(
        source,
        template,
        end,
        [
            {"role": "user", "content": with_picture},
            {"role": "assistant", "content": answer},
            {"role": "user", "content": second},
        ],
    )
    pieces = _split(whole, (IMAGE, _FIRST, _ANSWER, _SECOND))
    if pieces is None:
        raise CheckpointError(
            f"{source.where}: the chat template does not put picture, question and answer in this order, once each"
        )
    opening, between, gap, following, after = pieces
    before = following.partition(end)[2] if end in following else following.lstrip()
    settings = {
        "answer": _escaped(gap.removeprefix(after))
        + "{answer}"
        + _escaped(following.partition(end)[0].rstrip())
    }
    if opening.endswith(before) and (before or not between.endswith(before)):  # "USER: <image>"
        system, question, picture = (
            opening.removesuffix(before),
            f"{_escaped(before)}{{images}}{{question}}",
            between,
        )
    else:  # "<image>Question: "
        system, question, picture = (
            opening,
            f"{{images}}{_escaped(before)}{{question}}",
            between.removesuffix(before),
        )
    settings |= {
        "system": system,
        "question": question.removeprefix("{images}") + _escaped(after),  # there they stand anyway
        "image": "{image}" + _escaped(picture),
    }
    return settings


def _render(source: Source, template: str, end: str, messages: list[dict[str, Any]]) -> str:
    from jinja2.exceptions import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    try:
        return environment.from_string(template).render(
            messages=messages, add_generation_prompt=True, eos_token=end, bos_token=""
        )
    except (TemplateError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{source.where}: the chat template cannot be used ({one_line(error)})"
        ) from None


def _split(text: str, words: tuple[str, ...]) -> list[str] | None:
    """The pieces between these words, or None unless each is there once and in this order."""
    pieces = []
    for word in words:
        piece, found, text = text.partition(word)
        if not found or word in text:
            return None
        pieces.append(piece)
    return [*pieces, text]


def _escaped(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")
