"""A model as it is saved, pushed and loaded again, and the numbers that it then computes in."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import vision_lm
from tests.conftest import VIT, Pictures, random_checkpoint
from vision_lm.checkpoint import Checkpoint
from vision_lm.encoder import ImageEncoder
from vision_lm.engine import device
from vision_lm.errors import CheckpointError
from vision_lm.model import VisionLM
from vision_lm.model_card import ModelCard


def test_what_is_pushed_to_the_hub_is_the_model(
    vlm: VisionLM, pictures: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The uploaded folder loads and answers as the model does; repository, privacy and token reach the hub's client."""
    calls: list[Any] = []

    class Hub:
        def __init__(self, token: str | None) -> None:
            calls.append(token)

        def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> str:
            calls.append((repo_id, private, exist_ok))
            return f"https://hub.example/{repo_id}"

        def file_exists(self, repo_id: str, name: str) -> bool:
            return (tmp_path / repo_id / name).exists()

        def upload_folder(self, *, repo_id: str, folder_path: str, ignore_patterns: list[str] | None) -> None:
            left_out = shutil.ignore_patterns(*ignore_patterns or ())
            shutil.copytree(folder_path, tmp_path / repo_id, ignore=left_out, dirs_exist_ok=True)

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    assert vlm.push_to_hub("me/model", private=True, token="t") == "https://hub.example/me/model"
    assert calls == ["t", ("me/model", True, True)]
    card = tmp_path / "me/model" / "README.md"
    card.write_text("what somebody wrote")
    vlm.push_to_hub("me/model")
    assert card.read_text() == "what somebody wrote"
    vlm.push_to_hub("me/model", card=ModelCard("mit"))
    assert "mit" in card.read_text()
    loaded = vision_lm.load(tmp_path / "me/model", device="cpu")
    assert str(loaded.ask(pictures[0], "what?", max_tokens=8)) == str(
        vlm.ask(pictures[0], "what?", max_tokens=8)
    )


def test_a_saved_model_answers_as_before(
    tiny_checkpoint: Checkpoint, pictures: Pictures, tmp_path: Path
) -> None:
    """save_pretrained and from_pretrained lose nothing, and load() finds the folder."""
    vlm = VisionLM(tiny_checkpoint, device="cpu")
    vlm.save_pretrained(tmp_path / "saved")
    loaded = vision_lm.load(tmp_path / "saved", device="cpu")
    assert loaded.config == vlm.config
    before, after = (model.ask(pictures[0], "what colour?") for model in (vlm, loaded))
    assert after.tokens == before.tokens
    assert after.token_logprobs == pytest.approx(before.token_logprobs, abs=1e-5)


def test_buffers_that_no_checkpoint_holds_are_computed(pictures: Pictures) -> None:
    """Some towers compute buffers when they are built, such as relative positions: they must not stay empty."""
    tower = {"timm_model_name": "test_vit_relpos", "timm_pool": "avg", "timm_proj": "", "image_size": 160}
    config = dataclasses.replace(VIT, embed_dim=10, tower=tower, image_size=160)
    checkpoint = random_checkpoint(config)
    encoder = ImageEncoder(config).eval()
    assert any(name not in encoder.state_dict() for name, _ in encoder.named_buffers())
    prefix = "encoder."
    weights = {n.removeprefix(prefix): t for n, t in checkpoint.tensors.items() if n.startswith(prefix)}
    encoder.load_state_dict(weights)
    vlm = VisionLM(checkpoint, device="cpu")
    pixels = encoder.preprocess(pictures[0])[None]
    with torch.no_grad():
        torch.testing.assert_close(vlm.encoder(pixels).patches, encoder(pixels).patches)


def test_other_dtypes_answer(vit_checkpoint: Checkpoint, pictures: Pictures) -> None:
    """bfloat16 and float16 run on a CPU and mostly agree with float32."""
    exact = VisionLM(vit_checkpoint, device="cpu").ask(pictures[0], "what colour?", max_tokens=1)
    for dtype in ("bfloat16", "float16"):
        rough = VisionLM(vit_checkpoint, device="cpu", dtype=dtype).ask(
            pictures[0], "what colour?", max_tokens=1
        )
        assert rough.token_logprobs == pytest.approx(exact.token_logprobs, abs=0.2)


@pytest.mark.parametrize(
    ("flags", "dtype", "computed"),
    [
        ("flags : avx2 fma f16c", "auto", torch.float32),
        ("flags : avx512f avx512_bf16", "auto", torch.bfloat16),
        ("flags : amx_tile amx_bf16", "auto", torch.bfloat16),
        ("flags : avx2 fma f16c", "bfloat16", torch.bfloat16),
    ],
)
def test_a_tower_is_computed_where_the_processor_is_fast(
    vit_checkpoint: Checkpoint,
    monkeypatch: pytest.MonkeyPatch,
    pictures: Pictures,
    flags: str,
    dtype: str,
    computed: torch.dtype,
) -> None:
    """A large model's weights stay in bfloat16; its tower is in float32 on a CPU that does not multiply these, unless asked."""
    monkeypatch.setattr(device, "processor", lambda: flags)
    monkeypatch.setattr(device, "SMALL", 0)
    config = dataclasses.replace(vit_checkpoint.config, dtype="bfloat16")
    large = dataclasses.replace(vit_checkpoint, config=config)
    vlm = VisionLM(large, device="cpu", dtype=dtype)
    assert vlm.dtype == torch.bfloat16
    assert {one.dtype for one in [*vlm.encoder.parameters(), *vlm.projector.parameters()]} == {computed}
    assert vlm.ask(pictures[0], "what colour?", max_tokens=2).tokens


def test_imports_stay_light() -> None:
    """`import vision_lm` brings no heavy library, and inference never brings transformers by itself."""
    code = (
        "import sys, vision_lm; assert not {'torch', 'numpy', 'PIL'} & sys.modules.keys(); "
        "vision_lm.VisionLM; assert not {'transformers', 'open_clip', 'timm'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


@pytest.mark.parametrize("way", ["embedded", "a folder", "a folder named like a repository"])
def test_only_the_hub_has_revisions(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`revision` beside a name that is none of the hub's is one line that says so, and no other checkpoint is loaded."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "me" / "model").mkdir(parents=True)
    source: Any = {"embedded": "mini", "a folder": tmp_path / "me" / "model"}.get(way, "me/model")
    with pytest.raises(
        CheckpointError, match="only a hub's repository has revisions; leave 'v1' out"
    ) as caught:
        vision_lm.load(source, revision="v1")
    assert str(caught.value).startswith(f"{source}: ")
    assert "\n" not in str(caught.value)


def test_lora_weights_alone_name_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`load()` has no option for the base or the tower that they go with: the error gives the command that has."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "lora"
    folder.mkdir()
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "/their/machine/phi-2"}')
    command = f"vision-lm import {folder} --out DIR --base FOLDER_OR_ID"
    with pytest.raises(CheckpointError, match=r"without the config\.json of the model") as caught:
        vision_lm.load(folder)
    assert str(caught.value).endswith(command)
    (folder / "config.json").write_text('{"model_type": "bunny-phi"}')
    with pytest.raises(
        CheckpointError, match="base_model_name_or_path is /their/machine/phi-2, which is not"
    ) as caught:
        vision_lm.load(folder)
    assert str(caught.value).endswith(command)
