"""moondream2, release by release, against its code restated; and what is of no known release."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import train_tokenizer
from tests.importers.moondream2 import FULL, KINDS, Kind, Moondream2
from tests.importers.moondream2_parts import PICTURES
from tests.importers.parity import assert_parity, imported, save
from vision_lm.bench.shapes import PHI_1_5
from vision_lm.errors import CheckpointError
from vision_lm.importers.importing import check, import_checkpoint
from vision_lm.importers.moondream import convert
from vision_lm.importers.source import Source


@pytest.mark.parametrize("date", KINDS)
@pytest.mark.parametrize("shown", ["small", "wide"])
def test_parity(date: str, shown: str, tmp_path: Path) -> None:
    kind = KINDS[date]
    model = Moondream2(kind)
    vlm = imported(model.saved(tmp_path / f"moondream2-{date}"), tmp_path / "ours")
    with torch.no_grad():
        original = model.original(PICTURES[shown])
    assert_parity(vlm, original, image=PICTURES[shown], stop=("<END>",) if kind.tags else ())
    assert vlm.config.text.attention == ("prefix" if kind.torch_code else "causal")


@pytest.mark.parametrize("date", KINDS)
def test_every_tensor_of_the_public_sizes_is_used(date: str) -> None:
    with torch.device("meta"):
        model = Moondream2(KINDS[date], FULL, PHI_1_5)
        tensors = model.tensors()
    source = Source(f"vikhyatk/moondream2@{date}", Path("full"), model.config())
    converted = convert(source, tensors, train_tokenizer())
    check(converted, source)
    assert replace(converted.config.text, attention="causal") == PHI_1_5
    assert converted.config.vision.image_size == 378
    assert converted.config.projector.in_features == 1152 * KINDS[date].views


def refused(model: Moondream2, folder: Path, said: str, **config: Any) -> None:
    model.saved(folder)
    (folder / "config.json").write_text(json.dumps(model.config() | config))
    with pytest.raises(CheckpointError, match=said) as error:
        import_checkpoint(folder, folder / "ours")
    assert "\n" not in str(error.value) and not (folder / "ours").exists()


def test_a_release_that_is_not_known_is_refused(tmp_path: Path) -> None:
    """Files that several releases share, with no date, an unknown one, or one of other files; a name changes nothing else."""
    spring, last = Moondream2(KINDS["2024-04-02"]), Moondream2(KINDS["2025-03-27"])
    refused(
        spring, tmp_path / "moondream2", "the name has no date; known are 2024-03-05, 2024-03-06, 2024-04-02"
    )
    refused(spring, tmp_path / "moondream2-2024-03-13", "the name says 2024-03-13; known are")
    refused(last, tmp_path / "moondream2", "model.vision.*the name has no date; known are 2025-01-09")
    refused(last, tmp_path / "moondream2-2025-06-21", "the name says 2025-06-21; known are 2025-01-09")
    refused(
        Moondream2(KINDS["2024-05-20"]),
        tmp_path / "moondream2-2024-05-08",
        "named 2024-05-08, but its projector reads two views, as in 2024-05-20 and 2024-07-23 and 2024-08-26",
    )
    refused(
        Moondream2(Kind(views=3)),
        tmp_path / "three",
        "reads 432 features of a tower 144 wide; of no known release",
    )


def test_settings_and_tensors_that_are_not_known_are_refused(tmp_path: Path) -> None:
    last = Moondream2(KINDS["2025-03-27"])
    moe = {"text": {"moe": {}}}
    refused(last, tmp_path / "a-2025-03-27", "config.text.moe is of no known release", config=moe)
    short = {"text": {"prefix_attn": 5}}
    refused(last, tmp_path / "b-2025-03-27", "prefix_attn is 5, allowed: 10", config=short)
    may = Moondream2(KINDS["2024-05-20"])
    folder = save(tmp_path / "c", may.config(), may.tensors() | {"text_model.extra.weight": torch.zeros(2)})
    with pytest.raises(CheckpointError, match=r"left over: text_model\.extra\.weight"):
        import_checkpoint(folder, tmp_path / "ours")
