"""The embedded model in a run: how many requests are under way never changes an answer, nor does an unreadable picture."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw

import vision_lm
from vision_lm.evaluate.asking import Asking
from vision_lm.evaluate.predictions import Failure, Prediction
from vision_lm.evaluate.tasks import Item


def test_answers_alone_and_in_company(tmp_path: Path) -> None:
    items = []
    for place, colour in enumerate(("red", "blue", "green")):
        image = Image.new("RGB", (96, 96), "white")
        ImageDraw.Draw(image).ellipse((20, 20, 70, 70), fill=colour)
        image.save(tmp_path / f"{colour}.png")
        question = ("What colour is the circle?", "How many shapes are there?", None)[place]
        items.append(Item(colour, tmp_path / f"{colour}.png", (colour,), question))
    (tmp_path / "broken.png").write_bytes((tmp_path / "red.png").read_bytes()[:60])
    items.insert(1, Item("broken", tmp_path / "broken.png", ("",), "What is this?"))
    vlm = vision_lm.load("mini", device="cpu")
    runs = {
        (count, blind): list(Asking(vlm, "{question}", "short", 8, count)(items, blind))
        for count in (1, 3)
        for blind in (False, True)
    }
    for count in (1, 3):
        failed = runs[count, False][1]
        assert isinstance(failed, Failure) and "broken.png" in failed.error
        assert all(isinstance(one, Prediction) for one in runs[count, True])
    for blind in (False, True):
        alone, company = runs[1, blind], runs[3, blind]
        assert [one.id for one in alone] == [one.id for one in company] == [item.id for item in items]
        assert [getattr(one, "prediction", "") for one in alone] == [
            getattr(one, "prediction", "") for one in company
        ]


def test_a_follow_up_is_asked_after_what_came_first(tmp_path: Path) -> None:
    """As `chat` asks it, with the right answers of before: their words are in the prompt, and the picture but once."""
    path = tmp_path / "scene.png"
    image = Image.new("RGB", (96, 96), "white")
    ImageDraw.Draw(image).ellipse((20, 20, 70, 70), fill="red")
    image.save(path)
    vlm = vision_lm.load("mini", device="cpu")
    first, then = "What shape is it?", "and what colour is it?"
    item = Item("1", path, ("red",), then, before=((first, "circle"),))
    (found,) = Asking(vlm, "{question}", "normal", None, 1)([item], blind=False)
    shown = {"type": "image", "image": path}
    expected = vlm.chat(
        [
            {"role": "user", "content": [shown, {"type": "text", "text": first}]},
            {"role": "assistant", "content": "circle"},
            {"role": "user", "content": then},
        ]
    )
    assert isinstance(found, Prediction)
    assert (found.prediction, found.confidence) == (str(expected), expected.confidence)
    assert str(expected) == "red"
