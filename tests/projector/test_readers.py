"""What the readers make of each layout, and that what is written reads back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from projector.data import readers
from projector.data.readers import read_samples
from projector.data.samples import (
    CAPTION_WORDINGS,
    QA,
    Sample,
    caption_request,
    iter_jsonl,
    write_jsonl,
)
from tests.projector.annotation_files import ANSWERS, COCO, CONTENT, JSONL, LLAVA, QUESTIONS, read, write


def test_jsonl_lines_become_samples(folder: Path) -> None:
    """Plain, caption and wider lines, with the line number as the source."""
    path = write(folder, "jsonl", JSONL)
    a, b = folder / "a.png", folder / "b.png"
    assert read(path) == [
        Sample((a,), (QA("What is it?", "A cube."),), False, f"{path}:1"),
        Sample((), (QA("Two plus two?", "Four."),), False, f"{path}:2"),
        Sample(
            (a, b),
            (QA("Which is red?", "the first", "colour"), QA("And blue?", "neither")),
            True,
            f"{path}:3",
        ),
        Sample((b,), (QA(caption_request("b.png"), "A red cube.", "caption"),), False, f"{path}:4"),
    ]


def test_llava_conversations_become_dialogues(folder: Path) -> None:
    """Image tags leave the text, turns are linked, text-only and several-image records are read."""
    path = write(folder, "llava", LLAVA)
    turns = (
        QA("What are the colors of the bus?", "The bus is white and red."),
        QA("Is it moving?", "It is parked."),
    )
    assert read(path) == [
        Sample((folder / "coco/train2017/000000033471.jpg",), turns, True, f"{path}:1#000000033471"),
        Sample((), (QA("Name a prime.", "Seven."),), True, f"{path}:1#wgByO4Y_0"),
        Sample(
            (folder / "a.png", folder / "b.png"),
            (QA("Compare them.", "They are alike."),),
            True,
            f"{path}:1#7",
        ),
    ]
    (text_only,) = read(write(folder, "llava", [LLAVA[1] | {"image": None}]))
    assert text_only.images == ()


def test_coco_captions_are_grouped_by_image(folder: Path) -> None:
    """One sample an image, its captions in the file's order, each with a different request."""
    restaurant, kitchen = read(write(folder, "coco", COCO))
    assert restaurant.images == (folder / "COCO_train2014_000000057870.jpg",)
    assert [turn.answer for turn in restaurant.turns] == [
        "A restaurant has modern wooden tables and chairs.",
        "A long restaurant table with rattan chairs.",
    ]
    assert [turn.answer for turn in kitchen.turns] == ["A man preparing desserts in a kitchen."]
    assert not restaurant.linked
    requests = [turn.question for turn in restaurant.turns]
    assert len(set(requests)) == 2
    assert set(requests) <= set(CAPTION_WORDINGS)


def test_vqav2_questions_are_grouped_by_image(folder: Path) -> None:
    """Answers meet their questions by id; the image's name comes from subset and image id."""
    path = write(folder, "vqav2", (QUESTIONS, ANSWERS))
    assert read(path) == [
        Sample(
            (folder / "COCO_train2014_000000057870.jpg",),
            (
                QA("What are the chairs made of?", "wicker", "other"),
                QA("Is this a restaurant?", "yes", "yes/no"),
            ),
            False,
            f"{path}#image_id/57870",
        ),
        Sample(
            (folder / "COCO_train2014_000000000009.jpg",),
            (QA("How many cookies can be seen?", "2", "number"),),
            False,
            f"{path}#image_id/9",
        ),
    ]


@pytest.mark.parametrize("layout", CONTENT)
@pytest.mark.parametrize("image_root", ["pictures", None])
def test_format_is_told_from_the_content(
    folder: Path, layout: readers.Format, image_root: str | None
) -> None:
    """Naming the format or not gives the same samples, wherever the images are."""
    written = write(folder, layout, CONTENT[layout])
    expected = [[image.relative_to(folder) for image in sample.images] for sample in read(written, layout)]
    path = written.rename(folder / "anything.json")
    if image_root:
        (folder / "sub").mkdir()
        path = path.rename(folder / "sub" / "anything.json")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())  # the byte order mark that some editors add
    annotations = folder / "answers.json" if layout == "vqav2" else None
    samples = read_samples(path, image_root=folder if image_root else None, annotations=annotations)
    assert [[image.relative_to(folder) for image in sample.images] for sample in samples] == expected


def test_written_samples_read_back(folder: Path) -> None:
    """What is written is what is read, in the same bytes each time, with paths relative to file or root."""
    samples = [
        Sample((folder / "a.png",), (QA("Wo?", "Über dem Würfel.\nDort.", "place"), QA("b", "c"))),
        Sample((folder / "coco/train2017/000000033471.jpg", folder / "b.png"), (QA("d", "e"),), linked=True),
        Sample((), (QA("f", "g"),)),
    ]
    (folder / "sub").mkdir()
    path = folder / "sub" / "data.jsonl"
    assert write_jsonl(path, samples) == 3
    first = path.read_bytes()
    write_jsonl(path, samples)
    assert path.read_bytes() == first
    assert "Über dem Würfel.".encode() in first
    assert json.loads(first.splitlines()[0])["images"] == ["../a.png"]
    assert list(path.parent.iterdir()) == [path]

    def content(sample: Sample) -> tuple[Any, ...]:
        return [image.resolve() for image in sample.images], sample.turns, sample.linked

    assert [content(sample) for sample in iter_jsonl(path)] == [content(sample) for sample in samples]
    write_jsonl(path, samples, image_root=folder)
    assert b'"images": ["a.png"]' in path.read_bytes()
    read = list(iter_jsonl(path, image_root=folder))
    assert [sample.images for sample in read] == [sample.images for sample in samples]


def test_caption_requests_are_fixed_by_the_name(folder: Path) -> None:
    """The same file name asks the same in every process and folder; many names use every request."""
    assert caption_request("a.png") == "Give a short description of the image."
    assert caption_request("elsewhere/a.png") == caption_request("a.png")
    assert {caption_request(f"{n}.png") for n in range(100)} == set(CAPTION_WORDINGS)
    assert [caption_request("a.png", index) for index in range(6)] != [caption_request("a.png")] * 6
