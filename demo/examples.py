"""Pictures to begin with, each with a question that suits it. NOTICE says where they come from."""

from __future__ import annotations

import html
from dataclasses import dataclass
from pathlib import Path

from demo.picture import open_picture

FOLDER = Path(__file__).parent / "examples"
THUMBNAIL = 200  # pixels of the longest side
# A click on one tells the page which. `element` and `trigger` are Gradio's.
ON_LOAD = """
element.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-example]");
  if (button) trigger("click", {example: Number(button.dataset.example)});
});
"""


@dataclass(frozen=True)
class Example:
    file: str
    shows: str
    question: str

    @property
    def path(self) -> Path:
        return FOLDER / self.file


EXAMPLES = (
    Example("cat.jpg", "A cat", "Is there a dog?"),
    Example("shapes.png", "Coloured shapes", "What colour is the star?"),
    Example("coffee.jpg", "A cup of coffee", "What is this?"),
    Example("rocket.jpg", "A rocket launch", "What does the photo show?"),
    Example("astronaut.jpg", "An astronaut", "Is there a person?"),
)


def gallery() -> str:
    """HTML: a row of buttons."""
    buttons = []
    for number, example in enumerate(EXAMPLES):
        thumbnail = open_picture(example.path, THUMBNAIL)
        buttons.append(
            f'<li><button type="button" data-example="{number}" title="{html.escape(example.question)}">'
            f'<img src="{thumbnail.view}" alt=""><span>{html.escape(example.shows)}</span></button></li>'
        )
    return f'<ul class="examples" aria-label="Examples">{"".join(buttons)}</ul>'
