"""The model card of a training run, filled from what `vision-lm train` and `vision-lm eval` leave in its folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.evaluate.test_run import vqa_files
from tests.projector.colour_run import recipe_file, write_data, write_start
from vision_lm.checkpoint import Checkpoint
from vision_lm.cli import main
from vision_lm.errors import CheckpointError
from vision_lm.evaluate.evaluation import run_task
from vision_lm.evaluate.registry import read_task
from vision_lm.evaluate.settings import Settings
from vision_lm.model import VisionLM
from vision_lm.model_card import read_licence
from vision_lm.run_card import card_of_run


def score(folder: Path, out: Path) -> None:
    """An evaluation of six answers, two of them right."""
    said = folder / "said.json"
    said.write_text(json.dumps([{"question_id": number, "answer": "red"} for number in range(6)]))
    task = read_task("vqav2", vqa_files(folder / "vqa"))
    settings = Settings("vqav2", out, predictions=said, resamples=50)
    run_task(settings, task, lambda: pytest.fail("the answers are given"))


def test_the_card_of_a_run(vit_checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Sources and samples of the recipe, the start with its licence, the figures of a score, not of a broken one, a licence."""
    data, out = write_data(tmp_path), tmp_path / "out"
    start = write_start(tmp_path, vit_checkpoint)
    (start / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n")
    sources = [{"path": str(data), "weight": 3.0}, {"path": str(data), "weight": 1.0}]
    recipe = recipe_file(start, data, steps=2, batch_size=2, accumulate=3, sources=sources)
    assert main(["train", "instruct", str(recipe)]) == 0
    score(tmp_path, out / "vqav2")

    card = card_of_run(out)
    assert card.licence == "", "which one the data leave to choose is nobody's guess"
    assert card.data == (
        "train.jsonl: 75% of 12 samples",
        "train.jsonl: 25% of 12 samples",
        "what start was trained on before (cc-by-4.0)",
    )
    scores = json.loads((out / "vqav2" / "scores.json").read_text())["scores"]["accuracy"]
    interval = f"95% interval {scores['low']:.4f} to {scores['high']:.4f}"
    assert card.metrics["vqav2, accuracy"] == f"0.3333 ({interval}; 6 of 6 items)"

    VisionLM.from_pretrained(out, "cpu").save_pretrained(tmp_path / "published", card_of_run(out, "mit"))
    (out / "scores.json").write_text('{"scores": 3}')
    with pytest.raises(CheckpointError, match="scores.json: not what `vision-lm eval` writes"):
        card_of_run(out)
    text = (tmp_path / "published" / "README.md").read_text()
    assert read_licence(tmp_path / "published" / "README.md") == "mit"
    assert all(f"- {line}\n" in text for line in card.data)
    assert "- vqav2, accuracy: 0.3333 (95% interval" in text


def test_what_is_no_run(tmp_path: Path) -> None:
    """A folder without a state, and a damaged one, in one line each."""
    with pytest.raises(CheckpointError, match="no run of `vision-lm train`"):
        card_of_run(tmp_path)
    (tmp_path / "state").mkdir()
    for cut in (b"", b"PK cut"):
        (tmp_path / "state" / "run.pt").write_bytes(cut)
        with pytest.raises(CheckpointError, match="its saved state cannot be read"):
            card_of_run(tmp_path)
