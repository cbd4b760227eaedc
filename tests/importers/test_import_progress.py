"""A long import says how far it is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.importers.layouts import SMALL_SIGLIP, TEXT, Parts
from tests.importers.parity import save
from tests.importers.test_import_bunny_imp import BUNNY, bunny_config, save_lora
from vision_lm.importers import share
from vision_lm.importers.importing import import_checkpoint


@pytest.mark.parametrize("form", ["merged", "lora"])
def test_the_share_that_is_written_rises(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of its bytes, in hundredths and gigabytes, no line twice; also where every matrix is merged as it is written."""
    monkeypatch.setattr(share, "EVERY", 0.0)
    parts = Parts("siglip", SMALL_SIGLIP, TEXT, head_bias=False)
    if form == "merged":
        folder = save(tmp_path / "theirs", bunny_config(), parts.tensors(*BUNNY))
    else:
        tower = {f"vision_model.{name}": t for name, t in parts.tower.state_dict().items()}
        save(tmp_path / "siglip", {"model_type": "siglip"}, tower)
        parts = Parts("siglip", SMALL_SIGLIP, TEXT)
        folder = save_lora(tmp_path, parts, bunny_config() | {"mm_vision_tower": str(tmp_path / "siglip")})
    said: list[str] = []
    import_checkpoint(folder, tmp_path / "ours", progress=said.append)
    found = [re.fullmatch(rf"{tmp_path / 'ours'}: (\d+)%, [\d.]+ of [\d.]+ GB", line) for line in said]
    shares = [int(one[1]) for one in found if one]
    assert shares == sorted(set(shares)) and len(shares) > 5 and shares[-1] > 60


def test_what_is_quickly_done_says_nothing_of_it(tmp_path: Path) -> None:
    folder = save(
        tmp_path / "theirs",
        bunny_config(),
        Parts("siglip", SMALL_SIGLIP, TEXT, head_bias=False).tensors(*BUNNY),
    )
    said: list[str] = []
    import_checkpoint(folder, tmp_path / "ours", progress=said.append)
    assert len(said) == 2 and not any("%" in line for line in said)
