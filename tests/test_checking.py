"""Captions that are checked: what the model itself does not find when it is asked is not said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

import vision_lm
from projector.data.scene_grammar import plural, singular
from vision_lm import checking, pictures
from vision_lm.answer import Answer
from vision_lm.cli import main
from vision_lm.errors import ImageError, RequestError
from vision_lm.images import open_image
from vision_lm.model import VisionLM
from vision_lm.noun_phrases import noun_phrases
from vision_lm.pictures import Pictures
from vision_lm.pointing import Point
from vision_lm.prompts import Turn


@pytest.fixture(scope="module")
def mini() -> VisionLM:
    return vision_lm.load("mini", device="cpu")


@pytest.fixture(scope="module")
def scene() -> Image.Image:
    """A red circle on the left and a blue square on the right."""
    picture = Image.new("RGB", (256, 256), (250, 250, 250))
    pen = ImageDraw.Draw(picture)
    pen.ellipse((20, 80, 110, 170), fill=(230, 30, 30))
    pen.rectangle((150, 90, 235, 175), fill=(40, 70, 210))
    return picture


def checked(mini: VisionLM, scene: Image.Image, text: str) -> Answer:
    """What a check leaves of a caption, as if mini had written it: its words, and before each thing where it points."""
    circle, square = (0.31, 0.44), (0.81, 0.56)
    points = [
        Point(max(one.begin - 1, 0), *(square if "blue" in one.text else circle))
        for one in noun_phrases(text)
        if one.text not in ("white background", "top", "drawing")
    ]
    question, _ = mini.caption_task("normal", {})
    said = mini.given_task(mini.prompts.answer_ids(text, points)[:-1])
    seen = Pictures(mini.config.vision, ())
    written = mini.submit([Turn(question, (scene,))], said, seen).ticket.result()
    (found,) = checking.checked(mini, [scene], [mini.writer.whole(written, caption=True)], seen)
    return found


@pytest.mark.parametrize(
    ("written", "said", "unconfirmed"),
    [
        ("A red circle and a blue square.", "A red circle and a blue square.", []),
        ("A red circle and a cat.", "A red circle and something.", ["cat"]),
        ("The cat at night.", "Something.", ["cat"]),
        ("A teapot and a blue square.", "Something and a blue square.", ["teapot"]),
        ("A red circle, a red circle and a blue square.", "A red circle, something and a blue square.", ["red circle"]),
        ("Two cats and a blue square.", "Some things and a blue square.", ["cats"]),
        ("A red circle, a cup of tea and a blue square.", "A red circle, something and a blue square.", ["cup"]),
        ("There is a red circle. The dog is right of the circle.", "There is a red circle.", ["dog"]),
        ("A red circle and a smiling face at the top.", "A red circle and something at the top.", ["smiling face"]),
        ("A drawing of a cat.", "A drawing of something.", ["cat"]),
        ("A cat, a dog and a green star.", "Several things.", ["cat", "dog", "green star"]),
        ("On a white background.", "On a white background.", []),
    ],
)  # fmt: skip
def test_what_is_not_found_is_taken_back(
    mini: VisionLM, scene: Image.Image, written: str, said: str, unconfirmed: list[str]
) -> None:
    """Whatever a caption says, what is there stays and what is not goes."""
    answer = checked(mini, scene, written)
    assert (answer.text, list(answer.unconfirmed)) == (said, unconfirmed)
    assert answer.unanswerable == (said in ("A drawing of something.", "Several things.", "Something."))


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("A red circle and a blue square.", "A red circle and a blue square."),
        ("A red circle and a cat.", "A red circle and something."),
    ],
)
def test_a_caption_of_a_given_form(mini: VisionLM, scene: Image.Image, written: str, said: str) -> None:
    """How likely its words were says nothing of them: they cannot point, and the form is not the model's."""
    assert mini.caption(scene, choices=[written], checked=True).text == said


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("A blue square.", "Perhaps a blue square."),
        ("A photo, perhaps of a blue square.", "A photo, perhaps of a blue square."),
        ("A red circle and three blue squares.", "A red circle and some blue squares."),
    ],
)
def test_what_is_half_believed_is_half_said(
    mini: VisionLM, scene: Image.Image, monkeypatch: pytest.MonkeyPatch, written: str, said: str
) -> None:
    """Where the bar lies higher or lower than mini's own, so that what is there falls between."""
    monkeypatch.setattr(checking, "CONFIRMED", 0.8 if "some" in said else 0.9999)
    assert checked(mini, scene, written).text == said


def test_lists_and_the_command_line(
    mini: VisionLM, scene: Image.Image, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A picture that cannot be read has its error in its place; the command says what the API says."""
    path, broken = tmp_path / "scene.png", tmp_path / "broken.png"
    scene.save(path)
    broken.write_bytes(path.read_bytes()[:100])
    first, error, last = mini.caption([path, broken, path], "short", checked=True)
    assert isinstance(error, ImageError) and str(first) == str(last)
    assert main(["caption", str(path), "--length", "short", "--check", "--device", "cpu"]) == 0
    assert capsys.readouterr().out.strip().startswith(str(first))


@pytest.mark.parametrize("look", ["checked", "support"])
def test_a_picture_is_read_once(
    mini: VisionLM,
    scene: Image.Image,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    look: str,
) -> None:
    """The second look must not fetch a URL, or open a file that may have changed, again."""
    read: list[object] = []

    def counted(source: object, **options: Any) -> Image.Image:
        read.append(source)
        return open_image(source, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(pictures, "open_image", counted)
    scene.save(path := tmp_path / "scene.png")
    mini.caption(path, support=look == "support", checked=look == "checked")
    assert read == [path]


def test_support_and_check_are_two_things(mini: VisionLM, scene: Image.Image) -> None:
    with pytest.raises(RequestError, match="give one"):
        mini.caption(scene, support=True, checked=True)


@pytest.mark.parametrize(
    ("text", "phrases"),
    [
        (
            "The picture shows a small smiling face and two cats.",
            [("a", "small smiling face"), ("two", "cats")],
        ),
        ("A man riding a wave and the dog.", [("a", "man"), ("a", "wave"), ("the", "dog")]),
        ("A bowl of oranges.", [("a", "bowl"), ("", "oranges")]),
    ],
)
def test_phrases_with_what_opens_them(text: str, phrases: list[tuple[str, str]]) -> None:
    found = noun_phrases(text)
    assert [(" ".join(one.opening), one.text) for one in found] == phrases
    assert all(
        text[one.begin : one.end].lower() == f"{' '.join(one.opening)} {one.text}".strip() for one in found
    )


def test_singular_undoes_plural() -> None:
    for word in (
        "red star",
        "cup of tea",
        "box",
        "berry",
        "cookie",
        "house",
        "man",
        "knife",
        "fox with a hat",
        "dish",
    ):
        assert singular(plural(word)) == word
    assert singular("grapes") == "grape" and singular("star") == "star"
