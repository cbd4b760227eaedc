"""What both tabs show alike: messages that are read aloud, and changes of the page."""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import Any, Literal, TypeAlias

import gradio as gr

Changes: TypeAlias = dict[Any, Any]  # component -> what it shows now, as Gradio takes it from a handler


def live(urgency: Literal["polite", "assertive"]) -> str:
    """The script of a gr.HTML whose changes are read aloud: what stays says so, not what is put into it."""
    return f'element.setAttribute("aria-live", "{urgency}");'


def notices(messages: Iterable[str]) -> str:
    """HTML of what went wrong."""
    return "".join(f"<p>{html.escape(one)}</p>" for one in messages)


def session_of(request: gr.Request) -> str:
    return str(request.session_hash)
