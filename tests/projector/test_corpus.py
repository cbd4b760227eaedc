"""The corpus as `vision-lm data build` writes it, from a few drawings."""

from __future__ import annotations

import json
import random
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from projector.data import corpus, scenes
from projector.data.corpus import (
    HELD_OUT_HANDS,
    HELD_OUT_STYLE,
    LINE_HANDS,
    MORE_HANDS,
    SCENE_STYLES,
    Sizes,
    build_corpus,
)
from projector.data.pictures import INDEX, STYLES
from projector.data.samples import QA, iter_jsonl

FEW = Sizes(scenes=8, drawings=1, restyled=1, hands_scenes=2, textures=0, held_out_scenes=3)


TRAINED = ("cat", "cup", "car", "key", "hat", "tree", "ship", "shoe", "book", "drum")
HANDS = ("rat", "oar", "bow", "urn", "jar", "fan", "bat", "log")
ICONS = ("gull", "comb", "tack", "wasp")
HELD = ("dog", "fox", "owl", "bee", "hen", "ant", "elk", "cow", "pig", "yak")
UNSEEN = ("ray", "pea", "gem")


@pytest.fixture
def drawings(tmp_path: Path) -> Path:
    """A root with some drawings by those that are trained, by more hands, in the style and by a hand that are held out."""
    index = tmp_path / INDEX
    index.parent.mkdir()
    styles = {
        SCENE_STYLES[0]: TRAINED,
        MORE_HANDS[0]: HANDS,
        LINE_HANDS[0]: ICONS,
        HELD_OUT_STYLE: HELD,
        HELD_OUT_HANDS[0]: UNSEEN,
    }
    rows = []
    for number, (style, name) in enumerate(
        (style, name) for style, names in styles.items() for name in names
    ):
        Image.new("RGBA", (96, 64), (number * 8, 80, 120, 255)).save(index.parent / f"{name}.png")
        rows.append({"name": name, "style": style, "path": f"{name}.png", "category": "thing", "aliases": []})
    index.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*.*"))}


def test_other_questions_leave_every_picture_as_it_is(
    drawings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Features that were computed for the pictures, which takes longest, stay good when what is asked changes."""
    monkeypatch.setattr(
        corpus, "ProcessPoolExecutor", ThreadPoolExecutor
    )  # which sees what is replaced below
    root = build_corpus(drawings, FEW, processes=1)
    before = contents(root)
    assert sum(name.startswith("scenes/") for name in before) == FEW.scenes
    ask = scenes.questions

    def other(scene: Any, rng: random.Random, *rest: Any, **more: Any) -> list[QA]:
        rng.random()
        return ask(scene, rng, *rest, **more)[:1]

    monkeypatch.setattr(scenes, "questions", other)
    for file in root.rglob("*.jsonl"):  # those that are there would be kept
        file.unlink()
    after = contents(build_corpus(drawings, FEW, processes=1))
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {
        "scenes.jsonl",
        "absent.jsonl",  # which has some of the same kind
        "hands_scenes.jsonl",
        "hands_scenes_absent.jsonl",
        "held_out/scenes.jsonl",
        "held_out/pairs.jsonl",
    }


def test_a_build_that_was_stopped_goes_on(drawings: Path) -> None:
    """A file that is there already is not made again, and what is missing is, as it was."""
    root = build_corpus(drawings, FEW, processes=1)
    before = contents(root)
    (root / "scenes.jsonl").write_text("kept\n")
    (root / "restyled.jsonl").unlink()
    after = contents(build_corpus(drawings, FEW, processes=1))
    assert after == before | {"scenes.jsonl": b"kept\n"}


def test_what_is_held_out_is_not_trained(drawings: Path) -> None:
    """Neither the style, nor the hands, nor the pairs of colour and shape; the files beside scenes show the same pictures."""
    assert {*SCENE_STYLES, *MORE_HANDS, *LINE_HANDS, HELD_OUT_STYLE, *HELD_OUT_HANDS} == set(STYLES)
    root = build_corpus(drawings, FEW, processes=2)
    asked = {path.stem: list(iter_jsonl(path)) for path in root.glob("*.jsonl")}
    held = {path.stem: list(iter_jsonl(path)) for path in (root / "held_out").glob("*.jsonl")}
    assert {image for one in asked["naming"] for image in one.images} <= {
        image for one in asked["scenes"] for image in one.images
    }
    said = " ".join(
        turn.question + turn.answer for name in asked for one in asked[name] for turn in one.turns
    )
    words = set(re.findall(r"\w+", said))
    assert not {*HELD, *UNSEEN} & words and {*HANDS, *ICONS} <= words and {*TRAINED} & words
    for file, names in (("drawings", HELD), (HELD_OUT_HANDS[0], UNSEEN)):
        named = [" ".join(turn.answer for turn in one.turns) for one in held[file]]
        assert all(any(name in text for name in names) for text in named) and len(named) == len(names)
    assert not {*HANDS, *ICONS} & {
        word for one in asked["scenes"] for turn in one.turns for word in turn.answer.split()
    }
    pairs = {f"{colour} {shape}" for colour, shape in scenes.HELD_OUT_PAIRS}
    answers = [turn.answer for one in asked["naming"] for turn in one.turns]
    assert not any(pair in answer for pair in pairs for answer in answers)
    assert any(pair in turn.answer for pair in pairs for one in held["pairs"] for turn in one.turns)
