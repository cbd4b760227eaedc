"""Where an answer comes from: on scenes whose truth is known, and on every way a picture reaches the encoder."""

from __future__ import annotations

import dataclasses
import re
from typing import Any, Literal

import numpy as np
import pytest
from PIL import Image, ImageDraw

import vision_lm
from tests.conftest import VIT, random_checkpoint, scripted
from vision_lm.checkpoint import Checkpoint
from vision_lm.errors import ImageError, RequestError
from vision_lm.explain import FAINTEST, Explanation
from vision_lm.model import VisionLM

QUESTION = "What colour is the cube?"
Place = tuple[int, int]
RADIUS = 36


@pytest.fixture(scope="module")
def mini() -> VisionLM:
    return vision_lm.load(device="cpu")


def scene(circle: Place, square: Place) -> Image.Image:
    """A red circle and a blue square on light grey, each 72 pixels wide, in a view of 256 x 256."""
    image = Image.new("RGB", (256, 256), (235, 235, 235))
    draw = ImageDraw.Draw(image)
    draw.ellipse(around(circle), fill=(220, 30, 30))
    draw.rectangle(around(square), fill=(30, 60, 220))
    return image


def around(place: Place, margin: int = 0) -> tuple[int, int, int, int]:
    reach = RADIUS + margin
    return place[0] - reach, place[1] - reach, place[0] + reach, place[1] + reach


def share(weights: np.ndarray[Any, Any], place: Place, margin: int) -> float:
    """How much of a map's mass lies on the thing at this place and `margin` pixels around it."""
    left, top, right, bottom = (max(edge, 0) for edge in around(place, margin))
    return float(weights[top:bottom, left:right].sum() / weights.sum())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("circle", "square"),
    [((64, 64), (190, 190)), ((190, 64), (64, 190)), ((60, 190), (190, 190)), ((64, 60), (190, 70))],
)
def test_the_map_lies_on_what_is_asked_about(mini: VisionLM, circle: Place, square: Place) -> None:
    """Two things apart, each asked about: its box, with half a window around it, holds the map's mass and peak."""
    image = scene(circle, square)
    for shape, colour, own, other in (
        ("circle", "red", circle, square),
        ("square", "blue", square, circle),
    ):
        found = mini.explain(image, f"What colour is the {shape}?", answer=colour)
        assert found.map.shape == (256, 256)
        down, across = np.unravel_index(found.map.argmax(), found.map.shape)
        left, top, right, bottom = around(own, 10)
        assert left <= across <= right and top <= down <= bottom
        assert share(found.map, own, 40) > 0.6
        assert share(found.map, other, 0) < 0.15


@pytest.mark.parametrize("size", [(60, 90), (90, 60)])
@pytest.mark.parametrize("resize", ["squash", "crop", "pad"])
def test_the_map_has_the_pictures_size(
    resize: Literal["squash", "crop", "pad"], size: tuple[int, int]
) -> None:
    """Whichever part of a picture the encoder sees, the map is the picture's; what it does not see is 0."""
    vision = dataclasses.replace(VIT, resize=resize)
    vlm = VisionLM(random_checkpoint(vision), device="cpu")
    noise = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    found = vlm.explain(Image.fromarray(noise), QUESTION, grid=3)
    assert found.cells.shape == (3, 3) and abs(found.cells).max() <= 1
    assert found.map.shape == size and found.map.dtype == np.float32
    assert found.map.min() >= 0 and found.map.max() == pytest.approx(found.strongest, abs=0.2)
    seen = np.zeros(size, dtype=bool)
    left, top, right, bottom = (max(round(edge), 0) for edge in found.box)
    seen[top:bottom, left:right] = True
    assert seen.mean() == pytest.approx(2 / 3 if resize == "crop" else 1)
    assert not found.map[~seen].any()
    assert found.overlay().size == size[::-1] and found.overlay(30).size in {(20, 30), (30, 20)}


def test_the_answer_is_the_models_own_or_the_one_given(vlm: VisionLM, pictures: list[Image.Image]) -> None:
    own = vlm.explain(pictures[0], QUESTION, grid=2)
    assert own.answer.text == vlm.ask(pictures[0], QUESTION).text
    given = vlm.explain(pictures[0], QUESTION, answer="The cube is red.", grid=2)
    assert given.answer.text == "The cube is red."
    assert not np.array_equal(own.cells, given.cells)
    again = vlm.explain(pictures[0], QUESTION, answer="The cube is red.", grid=2)
    np.testing.assert_allclose(again.cells, given.cells, atol=1e-5)


def test_a_model_that_does_not_look_is_found_out(
    vit_checkpoint: Checkpoint, pictures: list[Image.Image]
) -> None:
    """Its answer is always the same, so no part of the picture brings any of it."""
    blind = VisionLM(scripted(vit_checkpoint, " The cube is red."), device="cpu")
    found = blind.explain(pictures[0], QUESTION, grid=3)
    np.testing.assert_allclose(found.cells, 0, atol=1e-5)
    assert not found.decisive
    assert str(found) == "“The cube is red.” does not come from any one part of the picture."
    pixels = np.asarray(found.overlay(), dtype=np.float32)
    assert pixels.mean() < 0.6 * np.asarray(pictures[0]).mean()  # all of it is dark: noise is not blown up


def test_one_of_several_pictures_late_in_a_conversation(vlm: VisionLM, pictures: list[Image.Image]) -> None:
    """The picture is named by its number, and the others and the turns before stay as they are."""

    def user(text: str, *images: Image.Image) -> dict[str, Any]:
        return {"role": "user", "content": [*({"type": "image", "image": one} for one in images), text]}

    before = [user("Question", *pictures[:2]), {"role": "assistant", "content": "yes"}]
    messages = [*before, user(QUESTION, pictures[2])]
    found = [vlm.explain_chat(messages, number, grid=2) for number in range(3)]
    assert [one.image.size for one in found] == [one.size for one in pictures[:3]]
    assert {one.answer.text for one in found} == {vlm.chat(messages).text}
    assert not np.array_equal(found[0].cells, found[1].cells)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"grid": 1}, "grid is '1'; give a whole number of cells a side, 2 to 16"),
        ({"grid": 17}, "grid is '17'"),
        ({"grid": 2.5}, "grid is '2.5'"),
        ({"answer": " "}, "answer is ' '; give a text of 1 to 1,000 characters, or None"),
        ({"answer": "x" * 1001}, "answer is 'xxx"),
        ({"answer": 3}, "answer is '3'"),
        ({"picture": 1}, "picture is '1'; give 0 to 0: the pictures are counted from 0"),
        ({"picture": -1}, "picture is '-1'"),
    ],
)
def test_bad_arguments_are_refused(
    vlm: VisionLM, pictures: list[Image.Image], arguments: dict[str, Any], message: str
) -> None:
    messages = [{"role": "user", "content": [{"type": "image", "image": pictures[0]}, QUESTION]}]
    with pytest.raises(RequestError, match=re.escape(message)):
        vlm.explain_chat(messages, **arguments)


def test_what_cannot_be_explained(vlm: VisionLM, pictures: list[Image.Image]) -> None:
    with pytest.raises(RequestError, match="there is no picture"):
        vlm.explain_chat([{"role": "user", "content": QUESTION}])
    with pytest.raises(RequestError, match="the question is empty"):
        vlm.explain(pictures[0], " ")
    with pytest.raises(ImageError, match="no such file"):
        vlm.explain("nowhere.png", QUESTION)


def test_it_says_where_in_words(vlm: VisionLM, pictures: list[Image.Image]) -> None:
    """The overlay's text for those who cannot see it."""
    answer = vlm.ask(pictures[0], QUESTION)
    places = {(0, 2): "top right part", (1, 1): "middle", (1, 0): "left part", (2, 1): "bottom part"}
    for (row, column), place in places.items():
        windows = np.zeros((4, 4), dtype=np.float32)
        windows[row : row + 2, column : column + 2] = FAINTEST  # those that the cell lies under
        found = Explanation(answer, pictures[0], windows, (0, 0, *pictures[0].size))
        assert str(found) == f"“{answer.text}” comes mostly from the {place} of the picture."
