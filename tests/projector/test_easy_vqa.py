"""easy-VQA: its kinds of questions, its splits, and what guessing without looking gets."""

from __future__ import annotations

import pytest

from projector.data import easy_vqa


@pytest.mark.parametrize(
    ("question", "kind"),
    [
        ("what color is the shape?", "colour"),
        ("what is the color of the circle?", "colour"),
        ("what shape is present?", "shape"),
        ("what is the teal shape?", "shape"),
        ("is there a circle in the image?", "existence"),
        ("does the image contain a red shape?", "existence"),
        ("is no brown shape present?", "absence"),
        ("does the image not contain a circle?", "absence"),
    ],
)
def test_easy_vqa_kinds(question: str, kind: str) -> None:
    """The type of a question follows from its form."""
    assert easy_vqa.kind_of(question) == kind


def test_easy_vqa_splits_and_blind_baseline() -> None:
    """The published sizes, answers of the right kind, and the 67.0 % that guessing without looking gets."""
    pytest.importorskip("easy_vqa")
    train, test = list(easy_vqa.train()), list(easy_vqa.test())
    assert (len(train), len(test)) == (38_575, 9_673)
    assert {one.image for one in train}.isdisjoint(one.image for one in test)
    assert all(one.image.is_file() for one in test[:50])
    answers = {kind: {one.answer for one in train if one.kind == kind} for kind in easy_vqa.KINDS}
    assert answers["shape"] == {"circle", "rectangle", "triangle"}
    assert answers["existence"] == answers["absence"] == {"yes", "no"}
    assert len(answers["colour"]) == 8
    scores = easy_vqa.blind_baseline(train, test)
    assert scores["all"].questions == sum(scores[kind].questions for kind in easy_vqa.KINDS) == 9_673
    assert scores["all"].accuracy == pytest.approx(0.670, abs=0.001)
