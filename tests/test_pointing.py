"""Answers that point: tokens without text, from the training file to the answer, its JSON and the server's log-probabilities."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from projector.data.samples import QA, Sample, iter_jsonl, write_jsonl
from projector.packing import IGNORED, pack_sample
from projector.points import with_points
from tests.conftest import scripted
from vision_lm.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from vision_lm.errors import CheckpointError, DataError
from vision_lm.model import VisionLM
from vision_lm.pointing import Point, point_token
from vision_lm.prompts import PromptBuilder
from vision_lm.server.logprobs import logprobs_of, tokens_of

GRID = 4
POINTS = (Point(0, 0.1, 0.9), Point(6, 0.99, 0.0))
MIDDLES = (Point(0, 0.125, 0.875), Point(6, 0.875, 0.125))  # of the cells that these are in
PICTURE = Image.new("RGB", (40, 20), "teal")


@pytest.fixture(scope="module")
def pointing(vit_checkpoint: Checkpoint) -> Checkpoint:
    return with_points(vit_checkpoint, GRID)


def test_new_tokens_change_no_answer(
    vit_checkpoint: Checkpoint, pointing: Checkpoint, tmp_path: Path
) -> None:
    """Until they are trained: and a written checkpoint is read back whole."""
    write_checkpoint(tmp_path / "pointing", pointing.config, pointing.tensors, pointing.tokenizer)
    before, after = VisionLM(vit_checkpoint), VisionLM(read_checkpoint(tmp_path / "pointing"))
    assert before.ask(PICTURE, "What colour is it?").text == after.ask(PICTURE, "What colour is it?").text
    assert after.config.prompt.image_token_id < after.config.text.vocab_size
    with pytest.raises(CheckpointError, match="point already"):
        with_points(pointing)
    cropped = dataclasses.replace(vit_checkpoint.config.vision, resize="crop")
    config = dataclasses.replace(vit_checkpoint.config, vision=cropped)
    with pytest.raises(CheckpointError, match="allowed beside points: 'squash'"):
        with_points(dataclasses.replace(vit_checkpoint, config=config))


def test_an_answer_says_where_it_points(pointing: Checkpoint) -> None:
    """Its text holds nothing of the tokens that point; streamed, in JSON and as log-probabilities as well."""
    vlm = VisionLM(scripted(pointing, "a cube is red", points=POINTS))
    answer = vlm.ask(PICTURE, "What is it?")
    assert answer.text == "a cube is red" and answer.points == MIDDLES
    stream = vlm.stream(PICTURE, "What is it?")
    assert "".join(stream) == answer.text and stream.answer == answer
    spelt = logprobs_of(tokens_of(answer), vlm.prompts).content
    assert "".join(one.token for one in spelt or []).strip() == answer.text


def test_an_answer_of_a_given_form_does_not_point(pointing: Checkpoint) -> None:
    vlm = VisionLM(scripted(pointing, "a cube", points=POINTS[:1]))
    answer = vlm.ask(PICTURE, "What is it?", choices=["dog", "cat"])
    assert answer.text in ("dog", "cat") and answer.points == ()


def test_nobody_can_write_a_point_into_a_question(pointing: Checkpoint) -> None:
    prompts = PromptBuilder(pointing.tokenizer, pointing.config.prompt, 16)
    points = pointing.config.prompt.points
    assert points is not None
    spelling = pointing.tokenizer.id_to_token(points.first_token_id)
    assert spelling == "<|point 0|>"
    assert max(prompts.encode(f"What is {spelling}?")) < points.first_token_id


def test_points_of_a_training_file_become_labels(pointing: Checkpoint, tmp_path: Path) -> None:
    """Written and read back, at their places in the answer; a checkpoint without such tokens learns the text alone."""
    PICTURE.save(tmp_path / "a.png")
    told = Sample((tmp_path / "a.png",), (QA("What is it?", "a cube and a dog", "what", POINTS),))
    write_jsonl(tmp_path / "a.jsonl", [told])
    (sample,) = iter_jsonl(tmp_path / "a.jsonl")
    assert sample.turns == told.turns
    prompts = PromptBuilder(pointing.tokenizer, pointing.config.prompt, 16)
    points = pointing.config.prompt.points
    assert points is not None
    cells = [point_token(point, points) for point in POINTS]
    assert cells == [points.first_token_id + 12, points.first_token_id + 3]
    labels = [label for label in pack_sample(sample, prompts, 256).labels if label != IGNORED]
    assert [one for one in labels if one in cells] == cells
    assert prompts.decode(labels[: labels.index(cells[1])]).strip() == "a cube"
    plain = PromptBuilder(pointing.tokenizer, pointing.config.prompt.__class__(0, 0), 16)
    assert plain.answer_ids("a cube", POINTS) == plain.answer_ids("a cube")


@pytest.mark.parametrize(
    ("points", "problem"),
    [
        ("left", "it must be a list"),
        ([[0, 0.5]], "it must be a list"),
        ([[0, 0.5, 1.5]], "from 0 to 1"),
        ([[0.5, 0.5, 0.5]], "it must be a list"),
        ([[99, 0.5, 0.5]], "within the answer's 6"),
        ([[5, 0.5, 0.5], [1, 0.5, 0.5]], "in order"),
    ],
)
def test_bad_points_are_named(tmp_path: Path, points: object, problem: str) -> None:
    PICTURE.save(tmp_path / "a.png")
    line = {"image": "a.png", "question": "What is it?", "answer": "a cube", "points": points}
    (tmp_path / "a.jsonl").write_text(json.dumps(line))
    with pytest.raises(DataError, match=rf"a\.jsonl:1: .*{problem}"):
        list(iter_jsonl(tmp_path / "a.jsonl"))


def test_a_config_whose_points_have_no_rows_is_refused(pointing: Checkpoint, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "one", pointing.config, pointing.tensors, pointing.tokenizer)
    config = json.loads((tmp_path / "one" / "config.json").read_text())
    for grid, problem in ((0, "grid is 0"), (100, "embedding rows")):
        config["prompt"]["points"]["grid"] = grid
        (tmp_path / "one" / "config.json").write_text(json.dumps(config))
        with pytest.raises(CheckpointError, match=problem):
            read_checkpoint(tmp_path / "one")


def test_the_new_rows_look_like_their_patches(trunk_checkpoint: Checkpoint) -> None:
    """Where the projector knows a place for each patch, a cell's embedding begins as that place."""
    known = trunk_checkpoint.tensors.get("projector.positions")
    side = round(len(known) ** 0.5) if known is not None else GRID
    found = with_points(trunk_checkpoint, side)
    points = found.config.prompt.points
    assert points is not None
    rows = found.tensors["phi.model.embed_tokens.weight"][points.first_token_id :][: side**2]
    assert known is None or torch.equal(rows, known.to(rows.dtype))
    assert len({tuple(row) for row in rows.tolist()}) == side**2
