"""Many pictures at once, as it is drawn: files in, a table and two downloads out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.processing_utils import save_bytes_to_cache

from demo.backend import Backend
from demo.batch import Job, Progress, Row, run, to_csv, to_jsonl
from demo.batch_table import ON_LOAD, progress, table
from demo.live import Changes, live, notices, session_of
from demo.settings import check, chosen, controls
from demo.stopping import Stops
from vision_lm.errors import VisionLMError

CAPTION, QUESTION = "Describe each", "Ask about each"
MOST_FILES = 2_000
HINT = f"<p class='hint'>Drop up to {MOST_FILES:,} pictures, and press Start.</p>"
QUEUED = "<p class='hint'>Waiting for the runs of other visitors…</p>"
RUNS = 2  # of all visitors at once: a chat must not wait behind thousands of pictures


class BatchTab:
    """Drawn where it is made."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.stops = Stops()
        with gr.Row(elem_classes="columns"):
            with gr.Column(scale=2, min_width=300):
                self._draw_task()
            with gr.Column(scale=3, min_width=320):
                self._draw_answers()
        self._connect()

    def left(self, request: gr.Request) -> None:
        """The visitor has closed the page."""
        self.stops.stop(session_of(request))

    def _draw_task(self) -> None:
        self.files = gr.File(label="Pictures", file_count="multiple", height=220, elem_id="files")
        self.task = gr.Radio([CAPTION, QUESTION], value=CAPTION, label="What to do", elem_id="task")
        self.length = gr.Radio(["short", "normal", "long"], value="short", label="Caption length")
        self.checked = check(elem_id="batch-check")
        self.question = gr.Textbox(
            label="Question", placeholder="What colour is it?", visible=False, elem_id="question"
        )
        with gr.Row(elem_classes="actions"):
            self.start = gr.Button("Start", variant="primary", size="md", min_width=110)
            self.stop = gr.Button("Stop", variant="stop", size="md", interactive=False, min_width=80)
        self.settings = controls(self.backend, "batch-settings", self.checked)

    def _draw_answers(self) -> None:
        self.notice = gr.HTML("", js_on_load=live("assertive"), elem_classes="notice")
        self.progress = gr.HTML(HINT, js_on_load=live("polite"))
        self.table = gr.HTML("", js_on_load=ON_LOAD, elem_id="answers")
        with gr.Row(elem_classes="actions"):
            self.csv = gr.DownloadButton("Download CSV", size="md", interactive=False, min_width=140)
            self.jsonl = gr.DownloadButton("Download JSONL", size="md", interactive=False, min_width=140)

    def _connect(self) -> None:
        hidden: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        choice = [self.length, self.checked, self.question]
        self.task.change(self._choose, [self.task], choice, queue=False, **hidden)
        # In the browser, at once: a run may have to wait for those of others.
        self.start.click(None, None, [self.progress], js=f"() => {json.dumps(QUEUED)}", queue=False, **hidden)
        self.start.click(
            self._run,
            [self.files, self.task, self.length, self.question, *self.settings.inputs],
            [self.notice, self.progress, self.table, self.start, self.stop, self.csv, self.jsonl],
            concurrency_limit=RUNS,
            **hidden,
        )
        self.stop.click(self.left, None, None, queue=False, **hidden)

    def _choose(self, task: str) -> tuple[Any, Any, Any]:
        captions = gr.update(visible=task == CAPTION)
        return captions, captions, gr.update(visible=task == QUESTION)

    def _run(
        self,
        files: Sequence[str] | None,
        task: str,
        length: Any,
        question: str | None,
        request: gr.Request,
        *settings: Any,
    ) -> Iterator[Changes]:
        if not files or len(files) > MOST_FILES:
            given = f"{len(files or ()):,} pictures are chosen"
            yield {
                self.notice: notices([f"{given}; drop 1 to {MOST_FILES:,} into the box, then press Start."]),
                self.progress: HINT,
            }
            return
        # A box that is not drawn yet gives None, which would ask for captions.
        job = Job(chosen(*settings), (question or "") if task == QUESTION else None, length)
        stop = self.stops.begin(session_of(request))
        rows: Sequence[Row] = ()
        try:
            for now in run(self.backend, [Path(file) for file in files], job, stop):
                rows = now.rows
                yield self._shown(now, running=True)
        except VisionLMError as error:
            yield {self.notice: notices([str(error)]), self.progress: HINT}
            return
        yield self._shown(Progress(tuple(rows), len(files)), running=False)

    def _shown(self, now: Progress, *, running: bool) -> Changes:
        changes: Changes = {
            self.notice: "",
            self.progress: progress(now, running=running),
            self.table: table(now.rows),
            self.start: gr.update(interactive=not running),
            self.stop: gr.update(interactive=running),
            self.csv: gr.update(interactive=False),
            self.jsonl: gr.update(interactive=False),
        }
        if not running and now.rows:
            for button, name, text in (
                (self.csv, "answers.csv", to_csv(now.rows)),
                (self.jsonl, "answers.jsonl", to_jsonl(now.rows)),
            ):
                path = save_bytes_to_cache(text.encode(errors="backslashreplace"), name, button.GRADIO_CACHE)
                button.temp_files.add(path)  # those that are deleted after their time
                changes[button] = gr.update(interactive=True, value=path)
        return changes
