"""What a visitor may choose about the model, folded away."""

from __future__ import annotations

from dataclasses import dataclass

import gradio as gr

from demo.backend import Backend, Settings

MOST_TOKENS = 512


@dataclass(frozen=True)
class Controls:
    model: gr.Dropdown
    temperature: gr.Slider
    tokens: gr.Slider
    checked: gr.Checkbox  # drawn where captions are asked for

    @property
    def inputs(self) -> list[gr.components.Component]:
        """What handlers get, in the order of `chosen`."""
        return [self.model, self.temperature, self.tokens, self.checked]


def check(elem_id: str) -> gr.Checkbox:
    """Drawn where this is called."""
    return gr.Checkbox(
        label="Check what the caption names",
        info="The model is asked about each thing; what it does not find it calls “something”.",
        elem_id=elem_id,
    )


def controls(backend: Backend, elem_id: str, checked: gr.Checkbox) -> Controls:
    """Drawn where this is called, but for `checked`."""
    with gr.Accordion("Settings", open=False, elem_id=elem_id):
        return Controls(
            model=gr.Dropdown(
                list(backend.models),
                value=backend.models[0],
                label="Checkpoint",
                info="Those that were named when the page was started.",
                filterable=False,
                interactive=len(backend.models) > 1,
            ),
            temperature=gr.Slider(
                0, 2, 0, step=0.1, label="Temperature", info="0: the likeliest answer, the same every time."
            ),
            tokens=gr.Slider(
                0,
                MOST_TOKENS,
                0,
                step=8,
                label="Longest answer",
                info="In tokens, about three quarters of a word each. 0: what suits the request.",
            ),
            checked=checked,
        )


def chosen(model: str, temperature: float, tokens: float, checked: bool) -> Settings:
    return Settings(model, float(temperature), int(tokens) or None, checked)
