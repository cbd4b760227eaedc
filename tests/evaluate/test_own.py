"""Our own tasks as read from what a data build made: which drawings are asked about, and which names are right."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from projector.data.corpus import HELD_OUT_HANDS, HELD_OUT_STYLE, SCENE_STYLES
from projector.data.photographs import photographs
from projector.data.pictures import INDEX
from projector.data.samples import QA, Sample, write_jsonl
from vision_lm.errors import EvaluationError
from vision_lm.evaluate.registry import read_task
from vision_lm.evaluate.settings import TaskFiles


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Four cats, an owl and a yak: nobody draws a yak but one whose drawings are held out."""
    index, held_out = tmp_path / INDEX, tmp_path / "corpus" / "held_out"
    index.parent.mkdir()
    held_out.mkdir(parents=True)
    drawn = {
        SCENE_STYLES[0]: ["cat", "owl"],
        HELD_OUT_STYLE: ["cat"] * 4,
        HELD_OUT_HANDS[0]: ["cat", "owl", "yak"],
        HELD_OUT_HANDS[1]: ["owl"],
        HELD_OUT_HANDS[2]: ["monarch butterfly"],
    }
    rows = []
    for style, names in drawn.items():
        samples = []
        for number, name in enumerate(names):
            path = held_out / f"{style}-{number}.png"
            Image.new("RGB", (8, 8), "white").save(path)
            aliases = ["kitten"] if name == "cat" else []
            rows.append(
                {"name": name, "style": style, "path": str(path), "category": None, "aliases": aliases}
            )
            article = "an" if name == "owl" else "a"
            samples.append(Sample((path,), (QA("What is this?", f"{article} {name}", "name"),)))
        file = "drawings.jsonl" if style == HELD_OUT_STYLE else f"{style}.jsonl"
        if style not in SCENE_STYLES:
            write_jsonl(held_out / file, samples)
    index.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_names_are_asked_of_what_has_a_trained_name(data: Path) -> None:
    """An alias is right, with an article or without; a thing that was never trained is not asked about.

    ImageNet's classes are trained by their evidence, under the nouns that people say.
    """
    hands = read_task("hands", TaskFiles(data=data))
    assert [(item.kind, item.references) for item in hands.items] == [
        (HELD_OUT_HANDS[0], ("a cat", "a kitten", "cat", "kitten")),
        (HELD_OUT_HANDS[0], ("an owl", "owl")),
        (HELD_OUT_HANDS[1], ("an owl", "owl")),
        (HELD_OUT_HANDS[2], ("a butterfly", "a monarch butterfly", "butterfly", "monarch butterfly")),
    ]
    assert len({item.id for item in hands.items}) == 4
    names = read_task("names", TaskFiles(data=data))
    assert len(names.items) == 3  # the first of four is for calibration


def test_a_build_without_a_file_is_named(data: Path) -> None:
    """One line: which file, and what makes it."""
    missing = data / "corpus" / "held_out" / f"{HELD_OUT_HANDS[1]}.jsonl"
    missing.unlink()
    with pytest.raises(EvaluationError, match=f"lacks {missing}; `vision-lm data build"):
        read_task("hands", TaskFiles(data=data))


def test_photographs_are_asked_by_every_name(tmp_path: Path) -> None:
    """Each picture of the table, apart by whether ImageNet has such a thing; a package that is not there is named."""
    for one in photographs(tmp_path):
        one.path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), "white").save(one.path)
    task = read_task("photographs", TaskFiles(data=tmp_path))
    by_name = {item.id: item for item in task.items}
    assert len(by_name) == len(task.items)
    assert {"a cat", "cat"} <= set(by_name["chelsea.png"].references)
    assert {"an espresso", "a cup of coffee"} <= set(by_name["coffee.png"].references)
    assert (by_name["lion.jpg"].kind, by_name["moon.png"].kind) == ("in ImageNet", "not in ImageNet")
    task.items[0].image.unlink()
    with pytest.raises(EvaluationError, match="chelsea.png; `vision-lm data build"):
        read_task("photographs", TaskFiles(data=tmp_path))


def test_what_is_not_there_is_to_be_said_so(tmp_path: Path) -> None:
    """Questions about absent things, of the part that nothing was calibrated on; "unanswerable" is their answer."""
    held_out = tmp_path / "corpus" / "held_out"
    held_out.mkdir(parents=True)
    turn = QA("Where is the star?", "unanswerable", "absent")
    paths = [held_out / f"{number}.png" for number in range(4)]
    for path in paths:
        Image.new("RGB", (8, 8), "white").save(path)
    write_jsonl(held_out / "absent.jsonl", [Sample((path,), (turn,)) for path in paths])
    task = read_task("absent", TaskFiles(data=tmp_path))
    assert [(item.id, item.kind) for item in task.items] == [(f"{n}/0", "absent") for n in (1, 2, 3)]
    measured = task.scorer.measure(task.items, ["unanswerable", "Unanswerable.", "at the top"])
    assert measured.right.tolist() == [1, 1, 0]


SCENE = (
    QA("Describe the image.", "A red circle and two blue stars.", "caption"),
    QA("What things are there?", "a red circle, two blue stars", "list"),
    QA("Is there a square?", "no", "existence"),
)


@pytest.fixture
def drawn(data: Path) -> Path:
    """Four scenes in the manner of a build, the first of which is for calibration."""
    held_out = data / "corpus" / "held_out"
    paths = [held_out / f"scene-{number}.png" for number in range(4)]
    for path in paths:
        Image.new("RGB", (8, 8), "white").save(path)
    write_jsonl(held_out / "scenes.jsonl", [Sample((path,), SCENE) for path in paths])
    linked = (QA("Is there a star?", "yes", "existence"), QA("and what colour is it?", "blue", "colour"))
    write_jsonl(held_out / "dialogues.jsonl", [Sample((path,), linked, linked=True) for path in paths])
    return data


def test_a_list_is_right_in_any_order(drawn: Path) -> None:
    task = read_task("scenes", TaskFiles(data=drawn))
    assert [(item.id, item.kind) for item in task.items[:2]] == [("1/1", "list"), ("1/2", "existence")]
    assert len(task.items) == 6 and task.blind
    said = [
        "two blue stars, a red circle",
        "No.",
        "a red circle",
        "no",
        "a red circle, two blue stars",
        "yes",
    ]
    assert task.scorer.measure(task.items, said).right.tolist() == [1, 1, 0, 1, 1, 0]


def test_objects_that_are_not_there_are_counted(drawn: Path) -> None:
    """By hand: of 2 + 3 + 1 things named one green square is not there; of nine that are there 2 + 3 + 1 are named."""
    task = read_task("hallucination", TaskFiles(data=drawn))
    captions = [
        "A red circle and a green square.",
        "Two blue stars and a red circle.",
        "A photo of a red circle.",
    ]
    measured = task.scorer.measure(task.items, captions)
    found = {name: float(value) for name, value in task.scorer.combine(measured.counts.sum(0)).items()}
    assert found == {
        "objects not there": pytest.approx(1 / 6),
        "captions with one": pytest.approx(1 / 3),
        "objects found": pytest.approx(5 / 9),
        "objects a caption": pytest.approx(2),
    }


def test_a_follow_up_knows_what_came_first(drawn: Path) -> None:
    """Only later turns are scored, each with the right answers of those before it."""
    task = read_task("dialogues", TaskFiles(data=drawn))
    assert [item.id for item in task.items] == ["1/1", "2/1", "3/1"]
    assert task.items[0].before == (("Is there a star?", "yes"),)
    assert (task.items[0].question, task.items[0].references) == ("and what colour is it?", ("blue",))
