"""Checkpoints on disk: what is written is read back, and what is wrong is refused by name."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import text_config
from vision_lm.checkpoint import Checkpoint, expected_tensors, read_checkpoint, write_checkpoint
from vision_lm.errors import CheckpointError
from vision_lm.phi import build_phi
from vision_lm.skeleton import phi_shapes


@pytest.fixture
def folder(vit_checkpoint: Checkpoint, tmp_path: Path) -> Path:
    """A good checkpoint on disk, for tests to damage."""
    return save(vit_checkpoint, tmp_path / "checkpoint")


def save(checkpoint: Checkpoint, folder: Path) -> Path:
    write_checkpoint(folder, checkpoint.config, checkpoint.tensors, checkpoint.tokenizer)
    return folder


def refusal(source: str | Path) -> str:
    """The one line that refuses this checkpoint."""
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(source)
    line = str(caught.value)
    assert "\n" not in line
    return line


def assert_same(first: Checkpoint, second: Checkpoint) -> None:
    assert first.config == second.config
    assert first.tokenizer.to_str() == second.tokenizer.to_str()
    assert first.tensors.keys() == second.tensors.keys()
    for name, tensor in first.tensors.items():
        assert tensor.dtype == second.tensors[name].dtype, name
        assert torch.equal(tensor, second.tensors[name]), name


def test_round_trip(tiny_checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Config, tokenizer and every tensor come back bit for bit, each in the dtype it was written in."""
    tensors = {
        name: t.bfloat16() if name.startswith("phi.") else t for name, t in tiny_checkpoint.tensors.items()
    }
    written = dataclasses.replace(tiny_checkpoint, tensors=tensors)
    read = read_checkpoint(save(written, tmp_path / "a"))
    assert_same(written, read)
    save(read, tmp_path / "b")
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), "the same bytes again"


@pytest.mark.parametrize("changes", [{}, {"num_key_value_heads": 4}, {"num_hidden_layers": 3}])
def test_phi_shapes_are_those_of_transformers(changes: dict[str, int]) -> None:
    """The names and shapes that we compute are PhiForCausalLM's, lm_head.bias and all."""
    config = text_config(**changes)
    oracle = {name: tensor.shape for name, tensor in build_phi(config).state_dict().items()}
    assert phi_shapes(config) == oracle


def test_expected_tensors_are_those_of_the_modules(tiny_checkpoint: Checkpoint) -> None:
    """A model built in the ordinary way has exactly the expected tensors."""
    shapes = {name: tensor.shape for name, tensor in tiny_checkpoint.tensors.items()}
    assert expected_tensors(tiny_checkpoint.config) == shapes


BIAS = "phi.lm_head.bias"
DAMAGED_TENSORS: dict[str, tuple[Callable[[dict[str, torch.Tensor]], object], str]] = {
    "missing": (lambda tensors: tensors.pop(BIAS), f"missing tensors: {BIAS}"),
    "extra": (lambda tensors: tensors.update(extra=torch.zeros(1)), "unexpected tensors: extra"),
    "renamed": (
        lambda tensors: tensors.update(bias=tensors.pop(BIAS)),
        f"missing tensors: {BIAS}; unexpected",
    ),
    "wrong shape": (lambda tensors: tensors.update({BIAS: torch.zeros(3)}), f"{BIAS} is [3], expected [416]"),
    "integers": (
        lambda tensors: tensors.update({BIAS: torch.zeros(416, dtype=torch.int8)}),
        f"not floating point: {BIAS}",
    ),
}


@pytest.mark.parametrize("damage", DAMAGED_TENSORS)
def test_wrong_tensors_are_named(folder: Path, damage: str) -> None:
    """A missing, extra or misshapen tensor is refused by its name."""
    change, expected = DAMAGED_TENSORS[damage]
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    assert expected in refusal(folder)


def test_tensors_that_do_not_fit_are_never_written(vit_checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Writing has the same check as reading: a checkpoint that was written can be read."""
    tensors = {name: t for name, t in vit_checkpoint.tensors.items() if name != BIAS}
    with pytest.raises(CheckpointError, match=BIAS):
        write_checkpoint(tmp_path / "out", vit_checkpoint.config, tensors, vit_checkpoint.tokenizer)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_half_written_tensors_are_refused(folder: Path, share: float) -> None:
    """A file cut anywhere, in its header or its data, says that it is half-written."""
    path = folder / "model.safetensors"
    os.truncate(path, int(path.stat().st_size * share))
    assert "half-written" in refusal(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_missing_or_damaged_file_is_named(folder: Path, name: str) -> None:
    """Each of the three files is needed, and none is trusted."""
    (folder / name).write_bytes(b"\x00\xff not what it should be")
    assert name in refusal(folder)
    (folder / name).unlink()
    assert name in refusal(folder)


@pytest.mark.parametrize(
    ("keys", "value", "expected"),
    [
        (["projector", "depth"], 3, "unknown key 'depth'"),
        (["projector", "in_features"], 33, "projector.in_features is 33, but the patches are 32 wide"),
        (["prompt", "image_token_id"], 5, "image_token_id 5 is the token"),
        (["prompt", "eos_token_id"], 415, "eos_token_id 415 is no token"),
        (["vision", "tower", "layers"], "three", "this tower cannot"),
        (["vision", "tower", "timm_model_name"], "hf_hub:somebody/something", "would fetch its own weights"),
        (["vision", "features"], [-9], "this tower cannot"),
        (["vision", "image_size"], -32, "vision.image_size is -32, allowed: above 0"),
        (["vision", "std"], [0.5, 0, 0.5], "vision.std is [0.5, 0.0, 0.5], allowed: above 0"),
        (["vision", "fill"], [0, 0, 255], "vision.fill is [0.0, 0.0, 255.0], allowed: 0 to 1"),
        (["projector", "hidden_features"], 0, "projector.hidden_features is 0"),
        (["projector", "positions"], -1, "projector.positions is -1"),
        (
            ["projector", "likeliest"],
            2,
            "projector.likeliest is 2, allowed with pooled []: up to 0",
        ),
        (
            ["vision", "pooled"],
            ["subject"],
            "vision.pooled has 'subject', allowed where projector.pooled_softmax",
        ),
        (["text", "num_attention_heads"], 0, "text.num_attention_heads is 0, allowed: above 0"),
        (["text", "num_key_value_heads"], 0, "text.num_key_value_heads is 0"),
        (["text", "num_key_value_heads"], -2, "text.num_key_value_heads is -2"),
        (["text", "num_hidden_layers"], -1, "text.num_hidden_layers is -1"),
        (["text", "vocab_size"], 0, "text.vocab_size is 0"),
        (["text", "max_position_embeddings"], 0, "text.max_position_embeddings is 0"),
        (["text", "rope_theta"], float("nan"), "text.rope_theta is nan"),
        (["text", "partial_rotary_factor"], 0.2, "turns 3 of a head's 16 values, allowed: an even number"),
        (["prompt", "eos_token_id"], -1, "prompt.eos_token_id -1 is outside the 416"),
        (["prompt", "question"], "What?", "prompt.question is 'What?', allowed: text with {question} once"),
        (["prompt", "question"], "{question} {image}", "prompt.question is '{question} {image}'"),
        (["prompt", "question"], "{question!r}", "prompt.question is '{question!r}'"),
        (["prompt", "question"], "{question", "prompt.question is '{question'"),
        (["prompt", "answer"], "Answer", "prompt.answer is 'Answer', allowed: text with {answer} once"),
        (["calibration", "scale"], float("inf"), "calibration is inf, 0.0, allowed: finite numbers"),
        (["calibration", "caption"], [{"scale": float("nan")}], "calibration is nan, 0.0, allowed: finite"),
        (["calibration", "pointing"], [{"shift": float("nan")}], "calibration is 1.0, nan, allowed: finite"),
    ],
)
def test_a_config_that_describes_no_model_is_refused(
    folder: Path, keys: list[str], value: object, expected: str
) -> None:
    """Every part of the config is checked against the others, the tokenizer and the tower itself."""
    config = json.loads((folder / "config.json").read_text())
    inner = config
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    (folder / "config.json").write_text(json.dumps(config))
    assert expected in refusal(folder)


def test_pickles_are_refused(folder: Path) -> None:
    """A folder whose weights are a pickle is refused without opening it."""
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"cos\nabort\n(tR.")  # would end this process
    assert "pytorch_model.bin, a pickle" in refusal(folder)


def test_sharded_checkpoints_are_read(vit_checkpoint: Checkpoint, folder: Path) -> None:
    """A model split into files by an index is the same model; an index may not point outside its folder."""
    names = sorted(vit_checkpoint.tensors)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in shards.items():
        save_file({name: vit_checkpoint.tensors[name] for name in part}, folder / file)
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {name: file for file, part in shards.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert_same(read_checkpoint(folder), vit_checkpoint)

    index["weight_map"][names[0]] = "../model.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "not a file name in this folder" in refusal(folder)
    index["weight_map"][names[0]] = "model-00003-of-00002.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model-00003-of-00002.safetensors: no such file" in refusal(folder)


class Killed(BaseException):
    """Stands for the signal that ends a process between two calls."""


@pytest.mark.parametrize("same_config", [True, False])
def test_a_killed_save_leaves_old_or_new_or_nothing(
    vit_checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, same_config: bool
) -> None:
    """Wherever a save is cut off, what loads is the old checkpoint or the new one, never a mixture."""
    old = vit_checkpoint
    name = old.config.name if same_config else "another"
    new = Checkpoint(
        dataclasses.replace(old.config, name=name), {n: t + 1 for n, t in old.tensors.items()}, old.tokenizer
    )
    steps: list[int] = []
    for target, call in ((os, "fsync"), (Path, "replace"), (Path, "unlink"), (Path, "write_bytes")):
        original = getattr(target, call)

        def step(*args: object, original: Callable[..., object] = original, **kwargs: object) -> object:
            if len(steps) == kill_at:
                raise Killed
            steps.append(1)
            return original(*args, **kwargs)

        monkeypatch.setattr(target, call, step)

    outcomes = set()
    for moment in range(100):
        kill_at, steps[:] = 10**9, []
        folder = save(old, tmp_path / f"{moment}")
        kill_at, steps[:] = moment, []
        try:
            save(new, folder)
        except Killed:
            outcome = "none"
        else:
            outcome = "finished"
        kill_at = 10**9
        try:
            found = read_checkpoint(folder)
        except CheckpointError:
            pass
        else:
            oracle = new if torch.equal(found.tensors[BIAS], new.tensors[BIAS]) else old
            assert_same(found, oracle)
            outcome = outcome if outcome == "finished" else "new" if oracle is new else "old"
        outcomes.add(outcome)
        shutil.rmtree(folder)
        if outcome == "finished":
            break
    # With an unchanged config there is no moment without a checkpoint that loads.
    assert outcomes == {"old", "finished"} | ({"new"} & outcomes) | (set() if same_config else {"none"})


def test_sources_that_are_no_checkpoint(tmp_path: Path) -> None:
    """A name that is nothing, a file, and an empty folder each say what is wrong."""
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    assert "no such folder" in refusal(tmp_path / "nothing")
    assert "no such folder" in refusal("nothing at all")
    assert "this is a file" in refusal(tmp_path / "file")
    assert "config.json: cannot be read" in refusal(tmp_path / "empty")


def test_hub_ids(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline, an id that was fetched before is read from the hub's cache; any other is refused in one line."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    cached = tmp_path / "hub" / "models--somebody--tiny"
    shutil.copytree(folder, cached / "snapshots" / "0123abc")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0123abc")
    assert read_checkpoint("somebody/tiny").config == read_checkpoint(folder).config
    assert refusal("somebody/else").startswith("somebody/else: ")
