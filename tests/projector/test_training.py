"""Training: what a step learns from, what it may change, what is refused, and what comes of it."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState

from projector.assemble import open_for_training
from projector.data.samples import QA, Sample
from projector.feature_cache import FeatureCache
from projector.optimizer import cosine
from projector.packing import IGNORED, collate, pack_sample
from projector.recipe import Recipe, Source
from projector.train import main
from tests.projector.colour_run import COLOURS, recipe, recipe_file, run
from vision_lm.checkpoint import Checkpoint, read_checkpoint
from vision_lm.encoder import Features
from vision_lm.errors import DataError, TrainingError
from vision_lm.images import open_image
from vision_lm.model import VisionLM
from vision_lm.prompts import PromptBuilder


def test_packed_questions_learn_as_if_alone(trunk_checkpoint: Checkpoint) -> None:
    """Packing changes the cost and nothing else: the loss is transformers' own, question by question, each counting
    as the root of its answer's length."""
    model = open_for_training(trunk_checkpoint, Recipe("", "", (Source(""),), language_model="full"))
    prompts = PromptBuilder(trunk_checkpoint.tokenizer, trunk_checkpoint.config.prompt, 12)
    turns = (
        QA("What colour is the cube?", "red"),
        QA("How many cats are there?", "two cats"),
        QA("?", "no"),
    )
    picture = torch.randn(1, 3, 96, 96)
    packed = collate([pack_sample(Sample((Path("x"),), turns), prompts, 500)])
    ours = model(packed, picture, None)
    features = model.encoder(picture)
    tokens = model.projector(features.patches, features.pooled)  # (1, 12, Dt)
    total, count = 0.0, 0.0
    for turn in turns:
        question = prompts.encode(prompts.config.question.format(question=turn.question))
        answer = prompts.answer_ids(turn.answer)
        text = model.phi.get_input_embeddings()(torch.tensor([question + answer]))
        labels = torch.tensor([[-100] * (12 + len(question)) + answer])
        loss = model.phi(inputs_embeds=torch.cat([tokens, text], dim=1), labels=labels).loss
        total, count = total + loss * len(answer) ** 0.5, count + len(answer) ** 0.5
    torch.testing.assert_close(ours, total / count, rtol=1e-5, atol=1e-5)


def test_dialogue_turns_see_earlier_ones(trunk_checkpoint: Checkpoint) -> None:
    """In a linked sample a change of the first turn changes the second turn's loss; in an independent one it does not."""
    model = open_for_training(trunk_checkpoint, Recipe("", "", (Source(""),), language_model="full"))
    prompts = PromptBuilder(trunk_checkpoint.tokenizer, trunk_checkpoint.config.prompt, 12)
    features = Features(
        torch.randn(1, 9, trunk_checkpoint.config.projector.in_features), torch.randn(1, 3, 10)
    )

    def second_turn(first_answer: str, linked: bool) -> float:
        sample = Sample((Path("x"),), (QA("What is it?", first_answer), QA("Is it red?", "no")), linked)
        packed = collate([pack_sample(sample, prompts, 500)])
        labels = packed.labels.clone()
        labels[
            :, : int((packed.ids == packed.ids[0, -1]).nonzero()[0, 1]) + 1
        ] = -100  # up to the first turn's end
        return float(model(dataclasses.replace(packed, labels=labels), None, features))

    assert second_turn("a cat", linked=False) == pytest.approx(second_turn("a dog", linked=False), abs=1e-6)
    assert abs(second_turn("a cat", linked=True) - second_turn("a dog", linked=True)) > 1e-4


def test_an_answer_begins_within_max_tokens(trunk_checkpoint: Checkpoint) -> None:
    """A question too long to be answered gives way to the next one; a row that teaches nothing is refused."""
    prompts = PromptBuilder(trunk_checkpoint.tokenizer, trunk_checkpoint.config.prompt, 12)
    long, short = QA("Why? " * 20, "red"), QA("What is it?", "a cube " * 50)
    row = pack_sample(Sample((Path("x"),), (long, short)), prompts, 60)
    assert len(row.ids) == 60
    learnt = 60 - 12 - len(prompts.encode(prompts.config.question.format(question=short.question))) + 1
    assert [label for label in row.labels if label != IGNORED] == prompts.answer_ids(short.answer)[:learnt]
    for images, turns, linked in (
        ((), (long,), False),
        ((Path("x"),) * 6, (short,), False),
        ((), (long, short), True),
    ):
        with pytest.raises(DataError, match=r"a\.jsonl:7: .* leave no room .* max_tokens is 60"):
            pack_sample(Sample(images, turns, linked, "a.jsonl:7"), prompts, 60)


@pytest.mark.parametrize("settings", [{}, {"tower": "full"}, {"language_model": "lora"}])
def test_a_batch_of_text_reaches_every_trained_weight(
    trunk_checkpoint: Checkpoint, settings: dict[str, Any]
) -> None:
    """With zeros where only a picture would teach: DistributedDataParallel waits for the gradient of each."""
    whole = {"language_model": "full"} | settings
    model = open_for_training(trunk_checkpoint, Recipe("", "", (Source(""),), **whole))
    prompts = PromptBuilder(trunk_checkpoint.tokenizer, trunk_checkpoint.config.prompt, 12)
    model(
        collate([pack_sample(Sample((), (QA("Two plus two?", "Four."),)), prompts, 500)]), None, None
    ).backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.requires_grad}
    assert not [name for name, gradient in gradients.items() if gradient is None]
    seeing = [gradient for name, gradient in gradients.items() if not name.startswith("phi.")]
    assert seeing and not any(gradient.any() for gradient in seeing if gradient is not None)


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
    trained = run(recipe(start, data, **settings))
    for _ in range(2):
        trained.advance()
    trained.save()
    before, after = read_checkpoint(start).tensors, read_checkpoint(data.parent / "out").tensors
    assert {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])} == changed


def test_lora_alone_may_be_trained_by_muon(start: Path, data: Path) -> None:
    """Then nothing is left for AdamW."""
    settings = {"language_model": "lora", "projector": "frozen", "optimizer": "muon"}
    assert len(run(recipe(start, data, **settings)).optimizers) == 1


def test_training_teaches(start: Path, data: Path) -> None:
    """From the recipe file to a checkpoint that answers rightly what it was taught, with curves on the way."""
    path = recipe_file(start, data, steps=60, log_every=5)
    folder = main(path, "instruct")
    vlm = VisionLM.from_pretrained(folder, device="cpu")
    assert vlm.config.projector_trained
    images = [data.parent / f"{name}.png" for name in COLOURS]
    assert [str(answer) for answer in vlm.ask(images, "What colour is it?")] == list(COLOURS)
    assert list(folder.rglob("events.out.tfevents*"))
    with pytest.raises(TrainingError, match="--resume"):
        main(path, "instruct")


def test_the_rate_warms_up_and_falls_as_a_cosine(start: Path, data: Path) -> None:
    """A hundredth of it is left at the end."""
    settings = recipe(start, data, steps=100, warmup=0.1)
    rates = [cosine(step, settings) for step in range(101)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert rates[10] == 1.0 and rates[55] == pytest.approx(0.505) and rates[100] == pytest.approx(0.01)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    steps = run(settings)
    seen = []
    for _ in range(3):
        seen.append(steps.schedules[0].get_last_lr()[0])
        steps.advance()
    assert seen == pytest.approx([settings.learning_rate * rate for rate in rates[:3]])


def test_bfloat16_teaches_as_well(start: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The loss of a mixed-precision run is close to float32's and its weights stay float32; the bar shows loss and ETA."""
    losses = {}
    for precision in ("no", "bf16"):
        out = data.parent / precision
        path = recipe_file(start, data, steps=20, log_every=20, precision=precision, out=str(out))
        AcceleratorState._reset_state(reset_partial_state=True)  # a process has one precision otherwise
        main(path, "instruct")
        shown = re.findall(r"20/20 \[\d+:\d+<00:00.*loss=([\d.]+), lr=", capsys.readouterr().err)
        losses[precision] = float(shown[-1])
        weights = read_checkpoint(out).tensors.values()
        assert {one.dtype for one in weights if one.is_floating_point()} == {torch.float32}
    AcceleratorState._reset_state(reset_partial_state=True)
    assert losses["bf16"] == pytest.approx(losses["no"], rel=0.1) and losses["bf16"] != losses["no"]


@pytest.mark.parametrize("cached", [False, True])
def test_a_picture_that_cannot_be_read(
    start: Path, data: Path, tmp_path: Path, cached: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """Strict: an error with the record, the picture and the reason. With --skip-bad: counted once however often it is
    drawn, listed, and the rest is trained."""
    (tmp_path / "blue.png").write_text("not a picture")
    path = recipe_file(start, data, feature_cache=str(tmp_path / "features") if cached else None)
    problem = r"train\.jsonl:3: .*blue\.png: this is text, not a picture"
    with pytest.raises(DataError, match=problem):
        main(path, "instruct")
    main(path, "instruct", skip_bad=True)
    assert re.search(rf"^1 bad record skipped\n  .*{problem}", capsys.readouterr().out)
    assert read_checkpoint(tmp_path / "out").config.projector_trained


@pytest.mark.parametrize("cached", [False, True])
def test_bad_records_are_listed_even_when_the_run_fails(
    start: Path, data: Path, tmp_path: Path, cached: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was skipped may be why."""
    for name in COLOURS:
        (tmp_path / f"{name}.png").write_text("not a picture")
    path = recipe_file(start, data, feature_cache=str(tmp_path / "features") if cached else None)
    with pytest.raises(DataError, match="no usable sample is left" if cached else "samples in a row"):
        main(path, "instruct", skip_bad=True)
    assert "4 bad records skipped" in capsys.readouterr().out


@pytest.mark.parametrize("cached", [False, True])
def test_pictures_of_more_tokens_than_fit(start: Path, data: Path, tmp_path: Path, cached: bool) -> None:
    """One line names the record and the setting, whether bad records are skipped or not: none is left."""
    cache = str(tmp_path / "features") if cached else None
    path = recipe_file(start, data, max_tokens=11, feature_cache=cache)
    for skip in (False, True):
        with pytest.raises(DataError, match=r"train\.jsonl:\d: 12 image tokens .* max_tokens is 11"):
            main(path, "instruct", skip_bad=skip)


def test_bad_records_are_named(start: Path, data: Path) -> None:
    """One line that says which file, which line, and what is missing."""
    lines = data.read_text().splitlines()
    data.write_text("\n".join([lines[0], json.dumps({"image": "red.png", "question": "What?"}), lines[1]]))
    with pytest.raises(DataError, match=r"train\.jsonl:2.*answer"):
        run(recipe(start, data))


def test_a_run_encodes_what_it_shows_and_no_more(start: Path, data: Path, tmp_path: Path) -> None:
    """Of many pictures a short run needs few. The loss is that of a run that encodes them again at every step."""
    cached = recipe(start, data, steps=1, batch_size=2, seed=1, feature_cache=str(tmp_path / "features"))
    short = run(cached)
    (index,) = (tmp_path / "features").rglob("index.txt")
    assert 1 <= len(index.read_text().splitlines()) <= 2 < len(COLOURS)
    own = run(dataclasses.replace(cached, feature_cache=None, out=str(tmp_path / "other")))
    assert short.advance() == pytest.approx(own.advance(), rel=1e-2)
    later = short.batches.make(range(2, 40))  # beyond what was said to be shown
    assert later.features is not None and len(later.features.patches) == 38


def test_a_feature_cache_outlives_a_kill(trunk_checkpoint: Checkpoint, data: Path, tmp_path: Path) -> None:
    """Features whose name was cut off half way are made anew, and every later one is its own picture's."""
    encoder = open_for_training(trunk_checkpoint, Recipe("", "", (Source(""),))).encoder
    paths = [data.parent / f"{name}.png" for name in COLOURS]
    FeatureCache(tmp_path / "features", encoder, torch.device("cpu")).add(paths[:2])
    (index,) = (tmp_path / "features").rglob("index.txt")
    index.write_text(index.read_text()[:-5])
    FeatureCache(tmp_path / "features", encoder, torch.device("cpu")).add(paths)
    pixels = torch.stack([encoder.preprocess(open_image(path)) for path in paths])
    cached = FeatureCache(tmp_path / "features", encoder, torch.device("cpu")).get(paths)
    torch.testing.assert_close(cached.patches, encoder(pixels).patches, rtol=2e-3, atol=2e-3)


def test_a_picture_that_changed_gets_features_of_its_own(
    trunk_checkpoint: Checkpoint, data: Path, tmp_path: Path
) -> None:
    """Under the same path another picture, as a corpus that is built again has them."""
    encoder = open_for_training(trunk_checkpoint, Recipe("", "", (Source(""),))).encoder
    path, other = (data.parent / f"{name}.png" for name in list(COLOURS)[:2])
    before = FeatureCache(tmp_path / "features", encoder, torch.device("cpu"))
    before.add([path, other])
    first = before.get([path]).patches
    path.write_bytes(other.read_bytes())
    cache = FeatureCache(tmp_path / "features", encoder, torch.device("cpu"))
    cache.add([path, other])
    found = cache.get([path]).patches
    torch.testing.assert_close(found, cache.get([other]).patches, rtol=2e-3, atol=2e-3)
    assert not torch.allclose(found, first, rtol=2e-3, atol=2e-3)
