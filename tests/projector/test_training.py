"""Training: what a step learns from, what it may change, and that a killed run goes on as if nothing had happened."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from projector.assemble import open_for_training
from projector.data.samples import Sample, Turn, write_jsonl
from projector.packing import collate, pack_sample
from projector.recipe import Recipe, Source
from projector.train import Run, check_stage, main
from vision_lm.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from vision_lm.encoder import Features
from vision_lm.errors import DataError, TrainingError
from vision_lm.model import VisionLM
from vision_lm.prompts import PromptBuilder

COLOURS = {"red": (220, 30, 30), "green": (30, 180, 40), "blue": (40, 60, 220), "white": (250, 250, 250)}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Four plain pictures, each with its colour asked in two ways."""
    samples = []
    for name, rgb in COLOURS.items():
        Image.new("RGB", (40, 40), rgb).save(tmp_path / f"{name}.png")
        turns = (Turn("What colour is it?", name), Turn("Is it red?", "yes" if name == "red" else "no"))
        samples.append(Sample((tmp_path / f"{name}.png",), turns))
    write_jsonl(tmp_path / "train.jsonl", samples)
    return tmp_path / "train.jsonl"


@pytest.fixture
def start(tmp_path: Path, trunk_checkpoint: Checkpoint) -> Path:
    """A checkpoint folder to train from."""
    c = trunk_checkpoint
    write_checkpoint(tmp_path / "start", c.config, c.tensors, c.tokenizer)
    return tmp_path / "start"


def recipe(start: Path, data: Path, **changes: Any) -> Recipe:
    settings: dict[str, Any] = {
        "checkpoint": str(start),
        "out": str(data.parent / "out"),
        "sources": (Source(str(data)),),
        "language_model": "full",
        "steps": 6,
        "batch_size": 3,
        "learning_rate": 3e-3,
        "precision": "no",
        "save_every": 100,
    }
    return Recipe(**(settings | changes))


def test_packed_questions_learn_as_if_alone(trunk_checkpoint: Checkpoint) -> None:
    """Packing changes the cost and nothing else: the loss is transformers' own, question by question, each counting
    as the root of its answer's length."""
    model = open_for_training(trunk_checkpoint, Recipe("", "", (Source(""),), language_model="full"))
    prompts = PromptBuilder(trunk_checkpoint.tokenizer, trunk_checkpoint.config.prompt, 11)
    turns = (
        Turn("What colour is the cube?", "red"),
        Turn("How many cats are there?", "two cats"),
        Turn("?", "no"),
    )
    picture = torch.randn(1, 3, 96, 96)
    packed = collate([pack_sample(Sample((Path("x"),), turns), prompts, 500)])
    ours = model(packed, picture, None)
    features = model.encoder(picture)
    tokens = model.projector(features.patches, features.pooled)  # (1, 11, Dt)
    total, count = 0.0, 0.0
    for turn in turns:
        question = prompts.encode(prompts.config.question.format(question=turn.question))
        answer = prompts.answer_ids(turn.answer)
        text = model.phi.get_input_embeddings()(torch.tensor([question + answer]))
        labels = torch.tensor([[-100] * (11 + len(question)) + answer])
        loss = model.phi(inputs_embeds=torch.cat([tokens, text], dim=1), labels=labels).loss
        total, count = total + loss * len(answer) ** 0.5, count + len(answer) ** 0.5
    torch.testing.assert_close(ours, total / count, rtol=1e-5, atol=1e-5)


def test_dialogue_turns_see_earlier_ones(trunk_checkpoint: Checkpoint) -> None:
    """In a linked sample a change of the first turn changes the second turn's loss; in an independent one it does not."""
    model = open_for_training(trunk_checkpoint, Recipe("", "", (Source(""),), language_model="full"))
    prompts = PromptBuilder(trunk_checkpoint.tokenizer, trunk_checkpoint.config.prompt, 11)
    features = Features(
        torch.randn(1, 9, trunk_checkpoint.config.projector.in_features), torch.randn(1, 2, 10)
    )

    def second_turn(first_answer: str, linked: bool) -> float:
        sample = Sample((Path("x"),), (Turn("What is it?", first_answer), Turn("Is it red?", "no")), linked)
        packed = collate([pack_sample(sample, prompts, 500)])
        labels = packed.labels.clone()
        labels[
            :, : int((packed.ids == packed.ids[0, -1]).nonzero()[0, 1]) + 1
        ] = -100  # up to the first turn's end
        return float(model(dataclasses.replace(packed, labels=labels), None, features))

    assert second_turn("a cat", linked=False) == pytest.approx(second_turn("a dog", linked=False), abs=1e-6)
    assert abs(second_turn("a cat", linked=True) - second_turn("a dog", linked=True)) > 1e-4


@pytest.mark.parametrize(("cached", "optimizer"), [(False, "adamw"), (True, "muon")])
def test_resume_is_exact(start: Path, data: Path, tmp_path: Path, cached: bool, optimizer: str) -> None:
    """A run stopped after three steps and resumed has the losses and the weights of one that was not."""
    cache = {"optimizer": optimizer} | ({"feature_cache": str(tmp_path / "features")} if cached else {})
    straight = Run(recipe(start, data, **cache), Accelerator(cpu=True, mixed_precision="no"))
    expected = [straight.advance() for _ in range(6)]
    first = Run(recipe(start, data, **cache), Accelerator(cpu=True, mixed_precision="no"))
    losses = [first.advance() for _ in range(3)]
    first.save()
    del first
    second = Run(recipe(start, data, **cache), Accelerator(cpu=True, mixed_precision="no"))
    second.restore()
    losses += [second.advance() for _ in range(3)]
    assert losses == expected
    for (name, ours), theirs in zip(
        second.model.state_dict().items(), straight.model.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs), name


def test_a_changed_recipe_is_not_resumed(start: Path, data: Path) -> None:
    """Resuming with other settings would be another run: refused, naming the setting."""
    run = Run(recipe(start, data), Accelerator(cpu=True, mixed_precision="no"))
    run.save()
    other = Run(recipe(start, data, learning_rate=1e-4), Accelerator(cpu=True, mixed_precision="no"))
    with pytest.raises(TrainingError, match="learning_rate"):
        other.restore()


@pytest.mark.parametrize(
    ("settings", "changed"),
    [
        ({"language_model": "frozen"}, {"projector"}),
        ({"language_model": "lora"}, {"projector", "phi"}),
        (
            {"language_model": "full", "tower": "full", "tower_learning_rate": 1e-3},
            {"projector", "phi", "encoder"},
        ),
    ],
)
def test_only_what_the_recipe_trains_changes(
    start: Path, data: Path, settings: dict[str, Any], changed: set[str]
) -> None:
    """Frozen parts come out bit for bit; LoRA comes out merged into ordinary weights, under the same names."""
    run = Run(recipe(start, data, **settings), Accelerator(cpu=True, mixed_precision="no"))
    for _ in range(2):
        run.advance()
    run.save()
    before, after = read_checkpoint(start).tensors, read_checkpoint(data.parent / "out").tensors
    assert {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])} == changed


def test_training_teaches(start: Path, data: Path, tmp_path: Path) -> None:
    """From the recipe file to a checkpoint that answers rightly what it was taught, with curves on the way."""
    (tmp_path / "recipe.yaml").write_text(
        f"checkpoint: {start}\nout: {tmp_path / 'out'}\nsources: [{{path: {data}}}]\nlanguage_model: full\n"
        "steps: 60\nbatch_size: 4\nlearning_rate: 0.003\nprecision: 'no'\nlog_every: 5\n"
    )
    folder = main(tmp_path / "recipe.yaml", "instruct")
    vlm = VisionLM.from_pretrained(folder, device="cpu")
    assert vlm.config.projector_trained
    images = [data.parent / f"{name}.png" for name in COLOURS]
    assert [str(answer) for answer in vlm.ask(images, "What colour is it?")] == list(COLOURS)
    assert list(folder.rglob("events.out.tfevents*"))
    with pytest.raises(TrainingError, match="--resume"):
        main(tmp_path / "recipe.yaml", "instruct")


@pytest.mark.parametrize("cached", [False, True])
def test_a_picture_that_cannot_be_read(start: Path, data: Path, tmp_path: Path, cached: bool) -> None:
    """Strict: an error that names the picture. With --skip-bad: counted, listed, and the rest is trained."""
    (tmp_path / "blue.png").write_text("not a picture")
    text = (
        f"checkpoint: {start}\nout: {tmp_path / 'out'}\nsources: [{{path: {data}}}]\nlanguage_model: full\n"
    )
    text += "steps: 4\nbatch_size: 4\nprecision: 'no'\n" + (
        f"feature_cache: {tmp_path / 'f'}\n" if cached else ""
    )
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(DataError, match=r"blue\.png"):
        main(tmp_path / "recipe.yaml", "instruct")
    main(tmp_path / "recipe.yaml", "instruct", skip_bad=True)
    assert read_checkpoint(tmp_path / "out").config.projector_trained


def test_bad_records_and_recipes_are_named(start: Path, data: Path, tmp_path: Path) -> None:
    """One line that says which file, which line or key, and what is allowed."""
    lines = data.read_text().splitlines()
    data.write_text("\n".join([lines[0], json.dumps({"image": "red.png", "question": "What?"}), lines[1]]))
    with pytest.raises(DataError, match=r"train\.jsonl:2.*answer"):
        Run(recipe(start, data), Accelerator(cpu=True, mixed_precision="no"))
    (tmp_path / "bad.yaml").write_text("checkpoint: a\nout: b\nsources: [{path: c}]\nlerning_rate: 1\n")
    with pytest.raises(TrainingError, match="unknown key 'lerning_rate'; allowed: .*learning_rate"):
        Recipe.load(tmp_path / "bad.yaml")
    with pytest.raises(TrainingError, match="align trains the projector alone"):
        check_stage(recipe(start, data), "align")
