"""The chat as it is drawn: its parts, and which of them does what."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import gradio as gr

from demo.backend import Backend
from demo.chat import Chat, Draft, View
from demo.conversation import Conversation
from demo.examples import EXAMPLES, ON_LOAD, gallery
from demo.failures import told
from demo.live import Changes, live, notices, session_of
from demo.looked import NOT_LOOKED, figure
from demo.settings import check, chosen, controls
from vision_lm.prompts import CaptionLength

LENGTHS: tuple[CaptionLength, ...] = get_args(CaptionLength)
ANSWERS = 16  # under way at once, of all visitors: the engine batches them
LOOKS = 2  # each is a hundred answers
WELCOME = """<div class="welcome"><p><strong>Add a picture, then ask about it.</strong></p>
<p>Drop it on the box below, paste it, or choose an example.</p></div>"""


class ChatTab:
    """Drawn where it is made."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.chat = Chat(backend)
        self.conversation = gr.State(Conversation())
        with gr.Row(elem_classes="columns"):
            with gr.Column(scale=8, min_width=320):
                self._draw_talk()
            with gr.Column(scale=5, min_width=300, elem_classes="aside"):
                self._draw_aside()
        self._connect()

    def left(self, request: gr.Request) -> None:
        """The visitor has closed the page, or wants no more."""
        self.chat.stops.stop(session_of(request))

    def _draw_talk(self) -> None:
        self.messages = gr.Chatbot(
            label="Conversation",
            show_label=False,
            height="clamp(300px, 54vh, 620px)",
            placeholder=WELCOME,
            render_markdown=False,
            buttons=["copy"],
            feedback_options=None,
            allow_file_downloads=False,
            elem_id="conversation",
        )
        self.notice = gr.HTML("", js_on_load=live("assertive"), elem_classes="notice", elem_id="notice")
        self.box = gr.MultimodalTextbox(
            label="Question about the pictures",
            show_label=False,
            placeholder="Ask about the picture…",
            file_count="multiple",
            sources=["upload"],
            max_plain_text_length=8_000,
            html_attributes=gr.InputHTMLAttributes(autocomplete="off", enterkeyhint="send"),
            elem_id="box",
        )
        with gr.Row(elem_classes="actions"):
            with gr.Row(elem_classes="captions", elem_id="captions"):
                gr.HTML("Caption", elem_classes="word")
                self.captions = {
                    length: gr.Button(length.capitalize(), variant="primary", size="md", min_width=64)
                    for length in LENGTHS
                }
            with gr.Row(elem_classes="others"):
                self.stop = gr.Button("Stop", variant="stop", size="md", interactive=False, min_width=64)
                self.retry = gr.Button("Retry", size="md", interactive=False, min_width=64)
                self.clear = gr.Button("New chat", size="md", interactive=False, min_width=64)
        self.checked = check(elem_id="check")

    def _draw_aside(self) -> None:
        with gr.Column(elem_classes="card"):
            gr.HTML("<h2>Examples</h2>")
            self.examples = gr.HTML(gallery(), js_on_load=ON_LOAD, elem_id="examples")
        with gr.Column(elem_classes="card"):
            gr.HTML("<h2>Where it looked</h2>")
            self.looked = gr.HTML(NOT_LOOKED, js_on_load=live("polite"), elem_id="looked")
            self.picture = gr.Radio([], label="Picture", visible=False, elem_id="which")
            self.look = gr.Button("Show where it looked", size="md", interactive=False)
        self.settings = controls(self.backend, "settings", self.checked)

    def _connect(self) -> None:
        settings = self.settings.inputs
        shown = [
            self.messages,
            self.conversation,
            self.box,
            self.notice,
            *self.captions.values(),
            self.stop,
            self.retry,
            self.clear,
            self.look,
            self.looked,
            self.picture,
        ]
        hidden: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        writing = [self.box, self.conversation, *settings]
        answering = hidden | {
            "concurrency_limit": ANSWERS,
            "concurrency_id": "answers",
        }  # one limit for all of them
        self.box.submit(self._send, writing, shown, **answering)
        for length, button in self.captions.items():
            button.click(self._describe(length), writing, shown, **answering)
        self.retry.click(self._retry, [self.conversation, *settings], shown, **answering)
        self.stop.click(self.left, None, None, queue=False, **hidden)
        gr.on([self.clear.click, self.messages.clear], self._clear, None, shown, queue=False, **hidden)
        self.examples.click(self._example, None, [self.box], queue=False, **hidden)
        self.look.click(
            self._look,
            [self.conversation, self.picture, *settings],
            [self.looked, self.notice],
            show_progress="full",
            show_progress_on=self.looked,
            concurrency_limit=LOOKS,
            api_visibility="private",
        )

    # Gradio puts the request where its annotation stands; what follows are the values of the settings' controls.
    def _send(
        self, box: Any, conversation: Conversation, request: gr.Request, *settings: Any
    ) -> Iterator[Changes]:
        views = self.chat.send(drafted(box), conversation, chosen(*settings), session_of(request))
        yield from map(self._shown, views)

    def _describe(self, length: CaptionLength) -> Callable[..., Iterator[Changes]]:
        """A button's handler. Gradio finds the request by its annotation, which a `partial` would hide."""

        def describe(
            box: Any, conversation: Conversation, request: gr.Request, *settings: Any
        ) -> Iterator[Changes]:
            wanted, session = chosen(*settings), session_of(request)
            yield from map(
                self._shown, self.chat.describe(drafted(box), conversation, length, wanted, session)
            )

        return describe

    def _retry(self, conversation: Conversation, request: gr.Request, *settings: Any) -> Iterator[Changes]:
        yield from map(self._shown, self.chat.retry(conversation, chosen(*settings), session_of(request)))

    def _clear(self) -> Changes:
        return self._shown(View(Conversation(), Draft()))

    def _look(self, conversation: Conversation, picture: int | None, *settings: Any) -> Changes:
        try:
            found = self.chat.explain(conversation, picture or 0, chosen(*settings))
        except Exception as error:
            return {self.notice: notices([told(error)])}
        return {self.looked: figure(found), self.notice: ""}

    def _example(self, event: gr.EventData) -> Any:
        example = EXAMPLES[event.example]
        return boxed(Draft(example.question, (example.path,)))

    def _shown(self, view: View) -> Changes:
        idle = not view.busy
        answered = idle and bool(view.conversation.exchanges)
        box: dict[str, Any] = {"submit_btn": idle}
        if view.draft is not None:
            box["value"] = boxed(view.draft)
        changes: Changes = {
            self.messages: view.conversation.messages(),
            self.conversation: view.conversation,
            self.box: gr.update(**box),
            self.notice: notices(view.notices),
            **{button: gr.update(interactive=idle) for button in self.captions.values()},
            self.stop: gr.update(interactive=view.busy),
            self.retry: gr.update(interactive=answered),
            self.clear: gr.update(interactive=answered),
        }
        asked_about = view.conversation.asked_about if answered else []
        changes[self.look] = gr.update(interactive=answered)
        changes[self.looked] = NOT_LOOKED
        changes[self.picture] = gr.update(
            choices=[(f"{number + 1}: {one.name}", number) for number, one in enumerate(asked_about)],
            value=len(asked_about) - 1 if asked_about else None,
            visible=len(asked_about) > 1,
        )
        return changes


def drafted(box: Any) -> Draft:
    """From Gradio's value of the box."""
    return Draft(box["text"], tuple(map(Path, box["files"])))


def boxed(draft: Draft) -> dict[str, Any]:
    """As Gradio's value of the box."""
    return {"text": draft.text, "files": [str(path) for path in draft.files]}
