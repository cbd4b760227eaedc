"""A page on which to drop a picture, read its caption, and ask about it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from vision_lm.errors import VisionLMError
from vision_lm.model import VisionLM

EXAMPLES = Path(__file__).parent / "examples"
QUESTIONS = {
    "cat.jpg": "Is there a dog?",
    "coffee.jpg": "What is this?",
    "rocket.jpg": "What does the photo show?",
}
Shown = tuple[str, dict[str, float] | None]  # the answer, and its confidence for gr.Label


def build(vlm: VisionLM) -> gr.Blocks:
    """The page for one model. Nothing is uploaded anywhere: the model runs where this runs."""

    def caption(image: Image.Image | None, length: Any) -> Iterator[Shown]:
        yield from _written(vlm.stream_caption, _given(image), length)

    def ask(image: Image.Image | None, question: str) -> Iterator[Shown]:
        yield from _written(vlm.stream, _given(image), question)

    with gr.Blocks(title="vision-lm", analytics_enabled=False) as page:
        gr.Markdown("# vision-lm\nDrop a picture, read what it shows, ask about it.")
        with gr.Row():
            image = gr.Image(type="pil", label="Picture", height=380)
            with gr.Column():
                length = gr.Radio(["short", "normal", "long"], value="normal", label="Caption length")
                describe = gr.Button("Describe", variant="primary")
                question = gr.Textbox(label="Question", placeholder="What is in the picture?")
                send = gr.Button("Ask")
                answer = gr.Textbox(label="Answer", interactive=False, lines=3)
                sure = gr.Label(label="Confidence", show_heading=False)
        describe.click(caption, [image, length], [answer, sure])
        send.click(ask, [image, question], [answer, sure])
        question.submit(ask, [image, question], [answer, sure])
        gr.Examples([[str(EXAMPLES / name), asked] for name, asked in QUESTIONS.items()], [image, question])
    return page


def _written(stream: Any, image: Image.Image, request: str) -> Iterator[Shown]:
    """The answer as it grows, then with its confidence; what is wrong with a request becomes a message on the page."""
    try:
        pieces, text = stream(image, request), ""
        for piece in pieces:
            text += piece
            yield text, None
    except VisionLMError as error:
        raise gr.Error(str(error)) from None
    yield text, {"confidence": pieces.answer.confidence}


def _given(image: Image.Image | None) -> Image.Image:
    if image is None:
        raise gr.Error("There is no picture yet: drop one, or choose an example.")
    return image
