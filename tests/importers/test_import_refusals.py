"""What cannot be imported: one line each, nothing executed, nothing left behind."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import train_tokenizer
from tests.importers.layouts import SMALL_CLIP, TEXT, Parts
from tests.importers.parity import save
from tests.importers.test_import_llava_phi import NAMES, config
from vision_lm.checkpoint import read_checkpoint
from vision_lm.cli import main
from vision_lm.errors import CheckpointError
from vision_lm.importers import importing, source


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small LLaVA-Phi, to be damaged in copies."""
    parts = Parts("clip", SMALL_CLIP, TEXT)
    return save(
        tmp_path_factory.mktemp("good") / "it", config("clip", SMALL_CLIP, TEXT), parts.tensors(*NAMES)
    )


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "theirs"))


def refusal(given: Path | str, out: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line with which the command refuses this source, and status 2."""
    assert main(["import", str(given), "--out", str(out)]) == 2
    assert not (out / "config.json").exists()
    line = [one for one in capsys.readouterr().err.splitlines() if "error:" in one]
    assert len(line) == 1
    return line[0]


class Bomb:
    """Unpickled, it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


def as_pickle(folder: Path, content: Any) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(content, folder / "pytorch_model.bin")


def sharded(folder: Path) -> None:
    """In two files, as the index says."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names, index = sorted(tensors), {}
    for number, some in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: tensors[name] for name in some}, folder / file)
        index |= dict.fromkeys(some, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))


def test_shards_and_plain_pickles_are_read(folder: Path, tmp_path: Path) -> None:
    """A pickle of tensors alone, and an index with its shards, give the same checkpoint as one file of safetensors."""
    again = Path(shutil.copytree(folder, tmp_path / "again"))
    pickled = Path(shutil.copytree(folder, tmp_path / "pickled"))
    sharded(again)
    as_pickle(pickled, load_file(folder / "model.safetensors"))
    found = []
    for number, given in enumerate((folder, again, pickled)):
        assert main(["import", str(given), "--out", str(tmp_path / str(number))]) == 0
        found.append(read_checkpoint(tmp_path / str(number)).tensors)
    for other in found[1:]:
        assert all(torch.equal(tensor, other[name]) for name, tensor in found[0].items())
    report = json.loads((tmp_path / "0" / "import.json").read_text())
    assert report["family"] == "LLaVA-Phi and Mipha"
    assert report["tensors"].keys() == found[0].keys()
    assert report["tensors"]["projector.patches.0.weight"] == {"from": ["model.mm_projector.0.weight"]}
    assert "model.vision_tower.vision_model.encoder.layers.2.layer_norm1.bias" in report["unused"]


def test_an_unknown_family(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The line lists the families and the keys that it saw."""
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    save_file(
        {"wte.weight": torch.zeros(2, 2), "h.0.ln.weight": torch.zeros(2)}, folder / "model.safetensors"
    )
    line = refusal(folder, tmp_path / "out", capsys)
    assert "'gpt2'" in line and "wte.weight" in line and "h.0.ln.weight" in line
    assert all(
        family in line for family in ("Bunny", "moondream1", "TinyLLaVA", "LLaVA-Phi", "transformers Llava")
    )


def truncated(folder: Path) -> None:
    sharded(folder)
    path = folder / "model-00002-of-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def no_index(folder: Path) -> None:
    sharded(folder)
    (folder / "model.safetensors.index.json").unlink()


def no_shard(folder: Path) -> None:
    sharded(folder)
    (folder / "model-00001-of-00002.safetensors").unlink()


def shard_elsewhere(folder: Path) -> None:
    sharded(folder)
    path = folder / "model.safetensors.index.json"
    path.write_text(path.read_text().replace("model-00001", "../model-00001"))


def other_vocabulary(folder: Path) -> None:
    tokenizer = train_tokenizer()
    tokenizer.add_tokens([f"<more {n}>" for n in range(100)])
    tokenizer.save(str(folder / "tokenizer.json"))


def other_size(folder: Path) -> None:
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | {"vocab_size": 400}))


def one_tensor_more(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"model.resampler.weight": torch.zeros(3)}, folder / "model.safetensors")


def one_tensor_less(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.fc2.bias"]
    save_file(tensors, folder / "model.safetensors")


def no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def other_pixels(folder: Path) -> None:
    (folder / "preprocessor_config.json").write_text(json.dumps({"do_rescale": False}))


def other_aspect(folder: Path) -> None:
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | {"image_aspect_ratio": "anyres"}))


def other_projector(folder: Path) -> None:
    raw = json.loads((folder / "config.json").read_text())
    raw["vision_config"]["mm_projector"]["mm_projector_type"] = "linear"
    (folder / "config.json").write_text(json.dumps(raw))


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (truncated, "model-00002-of-00002.safetensors: damaged or half-written"),
        (no_index, "no index"),
        (no_shard, "model-00001-of-00002.safetensors: no such file"),
        (shard_elsewhere, "not a file name in this folder"),
        (other_vocabulary, "embedding rows"),
        (other_size, "416 rows"),
        (one_tensor_more, "left over: model.resampler.weight"),
        (one_tensor_less, "missing tensors: model.layers.1.mlp.fc2.bias"),
        (no_tokenizer, "tokenizer.json"),
        (other_projector, "'linear'"),
        (other_pixels, "do_rescale False is not supported"),
        (other_aspect, "image_aspect_ratio 'anyres' is not supported"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_damaged_checkpoint(
    damage: Callable[[Path], None],
    named: str,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    damage(folder)
    assert named in refusal(folder, tmp_path / "out", capsys)


def test_a_pickle_with_code_is_not_run(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither alone nor hidden among tensors, in torch's format and in plain pickle's."""
    for number, content in enumerate(
        (Bomb(tmp_path / "ran"), {"model.mm_projector.0.weight": Bomb(tmp_path / "ran")})
    ):
        copy = Path(shutil.copytree(folder, tmp_path / f"bomb{number}"))
        as_pickle(copy, content)
        assert "a pickle that runs code is refused" in refusal(copy, tmp_path / "out", capsys)
        (copy / "pytorch_model.bin").write_bytes(pickle.dumps(content))
        assert "refused" in refusal(copy, tmp_path / "out", capsys)
    assert not (tmp_path / "ran").exists()


def test_remote_code_is_never_run(folder: Path, tmp_path: Path) -> None:
    """A repository that asks for it is read as any other, its Python files untouched."""
    code = f"open({str(tmp_path / 'ran')!r}, 'w').close()"
    for name in ("modeling_llava_phi.py", "configuration_llava_phi.py", "__init__.py"):
        (folder / name).write_text(code)
    raw = json.loads((folder / "config.json").read_text())
    auto = {"AutoConfig": "configuration_llava_phi.C", "AutoModelForCausalLM": "modeling_llava_phi.M"}
    (folder / "config.json").write_text(json.dumps(raw | {"auto_map": auto}))
    assert main(["import", str(folder), "--out", str(tmp_path / "out")]) == 0
    assert not (tmp_path / "ran").exists()
    assert not list((tmp_path / "out").glob("*.py"))


def test_a_full_disk_is_known_beforehand(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: real._replace(free=1000))
    line = refusal(folder, tmp_path / "out", capsys)
    assert "needs" in line and "1,000" in line
    assert not (tmp_path / "out").exists()


def test_no_network(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "cannot be reached" in refusal("nobody/has-this-model", tmp_path / "out", capsys)


def test_an_unknown_repository_is_not_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its config.json says enough: gigabytes are not fetched to be refused."""
    asked: list[tuple[str, ...]] = []
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))

    def find_folder(name: str, files: tuple[str, ...]) -> Path:
        asked.append(files)
        return tmp_path

    monkeypatch.setattr(source, "find_folder", find_folder)
    with pytest.raises(CheckpointError, match="of no known family"):
        importing.import_checkpoint("somebody/gpt", tmp_path / "out")
    (files,) = asked
    assert not any("safetensors" in one or ".bin" in one or ".py" in one for one in files)


def test_neither_overwrites_nor_reads_what_is_not_there(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["import", str(folder), "--out", str(tmp_path / "out")]) == 0
    before = (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns
    assert main(["import", str(folder), "--out", str(tmp_path / "out")]) == 2
    assert "holds a checkpoint already" in capsys.readouterr().err
    assert (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns == before
    assert "no such folder" in refusal(tmp_path / "nowhere", tmp_path / "other", capsys)


def test_load_imports_once(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second load finds the first one's import; a changed source is imported anew; a bad one leaves nothing."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    kept = tmp_path / "cache" / "vision-lm" / "imports"
    first = read_checkpoint(folder)
    assert first.config.prompt.system.startswith("A chat between")
    (made,) = kept.iterdir()
    before = (made / "model.safetensors").stat().st_ino
    (folder / "events.log").write_text("of no importer's business")
    for name, age in (("killed", 2 * 24 * 3600), ("running", 60)):
        (kept / f".importing-{name}").mkdir()
        os.utime(kept / f".importing-{name}", (time.time() - age,) * 2)
    read_checkpoint(folder)
    assert (made / "model.safetensors").stat().st_ino == before and len(list(kept.iterdir())) == 3
    one_tensor_less(folder)
    with pytest.raises(CheckpointError, match="missing tensors"):
        read_checkpoint(folder)
    assert sorted(kept.iterdir()) == sorted(
        [made, kept / ".importing-running"]
    )  # what a killed import left is gone
