"""What `vision-lm info` knows of where a checkpoint came from and under which licence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.importers.layouts import SMALL_SIGLIP, TEXT, Parts
from tests.importers.parity import save
from tests.importers.test_import_bunny_imp import bunny_config, save_lora
from vision_lm.checkpoint import Checkpoint, write_checkpoint
from vision_lm.cli import main
from vision_lm.model_card import read_licence


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Imports of this test alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def info(model: Path | str, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """Its lines."""
    assert main(["info", str(model)]) == 0
    return {
        key: value.strip()
        for key, value in (one.split(":", 1) for one in capsys.readouterr().out.splitlines())
    }


def test_of_an_import(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Merged LoRA weights: source, family, the base beneath and the source's licence, from the import's own report."""
    parts = Parts("siglip", SMALL_SIGLIP, TEXT)
    tower = {f"vision_model.{name}": tensor for name, tensor in parts.tower.state_dict().items()}
    save(tmp_path / "siglip", {"model_type": "siglip"}, tower)
    folder = save_lora(tmp_path, parts, bunny_config() | {"mm_vision_tower": str(tmp_path / "siglip")})
    (folder / "README.md").write_text("---\nlicense: other\nlicense_name: phi-msft\n---\n# Bunny\n")
    lines = info(folder, capsys)  # on the fly
    assert lines["name"] == "lora"
    assert lines["licence"] == "phi-msft"
    assert lines["origin"] == f"{folder}, merged into {tmp_path / 'base'}, imported as Bunny"
    assert main(["import", str(folder), "--out", str(tmp_path / "ours")]) == 0
    capsys.readouterr()
    again = info(tmp_path / "ours", capsys)
    assert (again["licence"], again["origin"]) == (lines["licence"], lines["origin"])
    (tmp_path / "ours" / "README.md").write_text("---\nlicense: mit\n---\n")
    assert info(tmp_path / "ours", capsys)["licence"] == "mit", "what its owner says of it now"


def test_of_what_nobody_wrote_down(
    vit_checkpoint: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Unknown, and not left out; a report that is damaged is one line."""
    write_checkpoint(tmp_path / "m", vit_checkpoint.config, vit_checkpoint.tensors, vit_checkpoint.tokenizer)
    lines = info(tmp_path / "m", capsys)
    assert (lines["licence"], lines["origin"], lines["from"]) == ("unknown", "unknown", str(tmp_path / "m"))
    (tmp_path / "m" / "import.json").write_text(json.dumps({"source": "me/it", "family": "Imp"}))
    lines = info(tmp_path / "m", capsys)  # as it was written before a licence stood in it
    assert (lines["licence"], lines["origin"]) == ("unknown", "me/it, imported as Imp")
    (tmp_path / "m" / "import.json").write_text("[1")
    assert main(["info", str(tmp_path / "m")]) == 2
    said = capsys.readouterr().err
    assert "import.json: cannot be read" in said and said.count("\n") == 1


def test_of_the_embedded_model(capsys: pytest.CaptureFixture[str]) -> None:
    """It came with the package, under its card's licence."""
    lines = info("mini", capsys)
    assert (lines["licence"], lines["origin"]) == ("apache-2.0", "part of vision-lm")


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: 'cc-by-4.0'\n---\n", "cc-by-4.0"),
        ("---\nlicense: other\n---\n", "other"),
        ("---\nlicense_name: phi-msft\nlicense: mit\n---\n", "mit"),
        ("---\ntags: [a]\n---\nlicense: mit\n", None),
        ("# no front matter\n", None),
    ],
)
def test_a_cards_licence(tmp_path: Path, card: str, licence: str | None) -> None:
    """Only what stands between the first two lines of dashes counts."""
    (tmp_path / "README.md").write_text(card)
    assert read_licence(tmp_path / "README.md") == licence
