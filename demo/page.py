"""The whole page: a heading, and a tab for each of the two things that can be done."""

from __future__ import annotations

import html
from pathlib import Path

import gradio as gr

from demo.backend import Backend
from demo.batch_tab import BatchTab
from demo.chat_tab import ChatTab

NAMES = Path(__file__).parent / "names.js"
CLEAN_EVERY, KEEP_FOR = 600, 6 * 3600  # seconds: files of visitors are deleted so long after they came
WAITING = 128  # beyond it a visitor is told to come back


def build(backend: Backend) -> gr.Blocks:
    """The page for a backend. It asks nothing of other machines: no fonts, no scripts, no telemetry."""
    with gr.Blocks(
        title="vision-lm", analytics_enabled=False, delete_cache=(CLEAN_EVERY, KEEP_FOR), fill_width=False
    ) as page:
        gr.HTML(heading(backend), elem_id="heading")
        with gr.Tabs():
            with gr.Tab("Chat", id="chat"):
                chat = ChatTab(backend)
            with gr.Tab("Many pictures", id="batch"):
                batch = BatchTab(backend)
        page.load(None, js=NAMES.read_text(encoding="utf-8"), api_visibility="private")
        page.unload(chat.left)
        page.unload(batch.left)
    page.queue(max_size=WAITING, api_open=False)
    return page


def heading(backend: Backend) -> str:
    models = ", ".join(map(html.escape, backend.models))
    return (
        "<header><h1>vision-lm</h1><p>Captions of pictures, and answers to questions about them.</p>"
        f'<p class="where"><strong>{models}</strong> {html.escape(backend.place)}</p></header>'
    )
