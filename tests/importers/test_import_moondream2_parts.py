"""moondream2's pictures in parts: cut as its code cuts them, told apart, and refused where parts are not known."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from projector import recipe
from projector.assemble import open_for_training
from projector.recipe import Recipe
from tests.importers.moondream2 import KINDS, Moondream2
from tests.importers.moondream2_parts import PICTURES, noise
from tests.importers.parity import QUESTION, imported, picture
from vision_lm.checkpoint import read_checkpoint
from vision_lm.config import Config
from vision_lm.errors import CheckpointError, ExportError, RequestError, TrainingError
from vision_lm.exporters.export import TARGETS, Settings, export
from vision_lm.importers.importing import import_checkpoint
from vision_lm.model import VisionLM


@pytest.mark.parametrize("date", ["2024-05-20", "2025-03-27"])
def test_pictures_of_every_shape_are_cut_as_theirs(date: str, tmp_path: Path) -> None:
    model = Moondream2(KINDS[date])
    vlm = imported(model.saved(tmp_path / f"moondream2-{date}"), tmp_path / "ours")
    shapes = set()
    for image in [
        *PICTURES.values(),
        noise(512, 512),
        noise(600, 450),
        noise(450, 600),
        noise(43, 43),
        noise(59, 70),
    ]:
        with torch.no_grad():
            pixels, features = model.seen(image)
        ours = vlm.encoder.preprocess(image)[None]
        shapes.add(ours.shape)
        assert ours.shape == pixels.shape
        torch.testing.assert_close(ours, pixels, rtol=0, atol=1e-6)
        torch.testing.assert_close(
            vlm.encoder(ours).patches, features, rtol=0, atol=1e-4 * float(features.abs().max())
        )
    assert len(shapes) >= 4


@pytest.mark.parametrize("date", ["2024-05-20", "2025-03-27"])
def test_pictures_in_parts_are_batched_and_told_apart(date: str, tmp_path: Path) -> None:
    """Answers about pictures of several shapes at once, and of the same again, are those about each alone.

    Two are white all over, one wide and one high: the same bytes, and two pictures.
    """
    vlm = imported(Moondream2(KINDS[date]).saved(tmp_path / f"moondream2-{date}"), tmp_path / "ours")
    images = [*PICTURES.values(), *(Image.new("RGB", size, "white") for size in ((640, 300), (300, 640)))]
    alone = [vlm.ask(image, QUESTION, max_tokens=8) for image in images]
    again = VisionLM(read_checkpoint(tmp_path / "ours"), device="cpu", dtype="float32")
    together = again.ask([*images, *images], QUESTION, max_tokens=8)
    assert [one.tokens for one in together] == [one.tokens for one in [*alone, *alone]]
    assert len({one.tokens for one in alone}) > 1
    assert again.engine.images.encoded == len(images)


@pytest.fixture(scope="module")
def last(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An import of 2025's."""
    folder = tmp_path_factory.mktemp("last")
    import_checkpoint(
        Moondream2(KINDS["2025-03-27"]).saved(folder / "moondream2-2025-03-27"), folder / "ours"
    )
    return folder / "ours"


def test_what_does_not_know_parts_or_prefix_attention_refuses_them(last: Path, tmp_path: Path) -> None:
    """Export, training, and an explanation where the parts overlap; each says why, and nothing is written."""
    for target in TARGETS:
        with pytest.raises(ExportError, match="prefix attention over a picture's tokens"):
            export(last, Settings(target, tmp_path / target, language_only=target == "gguf"))
        assert not (tmp_path / target).exists()
    with pytest.raises(TrainingError, match="in parts, or in both directions"):
        open_for_training(read_checkpoint(last), Recipe(str(last), "", (recipe.Source(""),)))
    vlm = VisionLM(read_checkpoint(last), device="cpu", dtype="float32")
    with pytest.raises(RequestError, match="in parts that overlap"):
        vlm.explain(picture(), QUESTION, grid=2)


def test_a_picture_in_a_grid_of_parts_is_explained(tmp_path: Path) -> None:
    """Its sheet is the picture, larger than the tower's square and no square itself: windows cover all of it."""
    vlm = imported(Moondream2(KINDS["2024-05-20"]).saved(tmp_path / "moondream2"), tmp_path / "ours")
    explained = vlm.explain(PICTURES["wide"], QUESTION, grid=2)
    assert explained.map.shape == (300, 640) and np.isfinite(explained.windows).all()
    assert np.abs(explained.windows).min() > 0


def test_impossible_parts_are_refused(last: Path, tmp_path: Path) -> None:
    settings = json.loads((last / "config.json").read_text())
    for changes, said in (
        ({"crops": {"kind": "overlap", "margin": 2}}, "crops.margin is 2, allowed: 0 to less than half of 3"),
        ({"crops": {"kind": "overlap", "most": 0}}, "most is 0 and smallest 0"),
        ({"image_size": 43}, "whole patches, found patches of 14 in 43 pixels"),
        ({"resize": "crop"}, "allowed beside it: no pooled tokens, no skipped patches, resize 'squash'"),
    ):
        path = tmp_path / "config.json"
        path.write_text(json.dumps(settings | {"vision": settings["vision"] | changes}))
        with pytest.raises(CheckpointError, match=re.escape(said)):
            Config.load(path)
