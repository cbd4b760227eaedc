"""Checkpoints on a hub: a small HTTP server that speaks its protocol, and huggingface_hub as its real client."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from tests.importers.layouts import SMALL_CLIP, TEXT, Parts
from tests.importers.parity import save
from tests.importers.test_import_llava_phi import NAMES, config
from vision_lm.checkpoint import Checkpoint, read_checkpoint
from vision_lm.model import VisionLM
from vision_lm.model_card import ModelCard, read_licence

COMMITS = {"main": "a" * 40, "v1": "b" * 40}


@pytest.fixture
def announced() -> dict[str, int]:
    """Files that are said to be larger than they are."""
    return {}


@pytest.fixture
def hub(
    vit_checkpoint: Checkpoint, tmp_path: Path, announced: dict[str, int]
) -> Iterator[tuple[str, list[str]]]:
    """A hub with one repository, me/tiny, and the requests that it got."""
    folder, asked = tmp_path / "repository", list[str]()
    card = ModelCard("mit", ("drawings",), {"accuracy": "1 of 2"})
    VisionLM(vit_checkpoint, "cpu").save_pretrained(folder, card)

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            asked.append(f"{self.command} {self.path}")
            parts = self.path.partition("?")[0].strip("/").split("/")
            if parts[:4] == ["api", "models", "me", "tiny"]:
                commit = parts[5] if parts[5] in COMMITS.values() else COMMITS.get(parts[5])
                if commit is None:
                    return self.answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
                about: object = {"id": "me/tiny", "sha": commit}
                if parts[4] == "tree":
                    about = [
                        {"type": "file", "path": one.name, "size": one.stat().st_size, "oid": "0" * 40}
                        for one in folder.iterdir()
                    ]
                return self.answer(200, json.dumps(about).encode(), {})
            if parts[:3] == ["me", "tiny", "resolve"] and (folder / parts[-1]).is_file():
                data = (folder / parts[-1]).read_bytes()
                size = announced.get(parts[-1], len(data))
                etag = f'"{hashlib.sha1(data).hexdigest()}"'
                said = {"ETag": etag, "X-Repo-Commit": parts[3], "X-Linked-Size": str(size)}
                return self.answer(200, data, said)
            return self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})

        def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()


def info(source: str, address: str, cache: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """`vision-lm info` in a process of its own: huggingface_hub reads its environment once."""
    environment = os.environ | {"HF_ENDPOINT": address, "HF_HUB_CACHE": str(cache), "NO_PROXY": "127.0.0.1"}
    command = [sys.executable, "-m", "vision_lm", "info", source]
    return subprocess.run(command, env=environment | more, capture_output=True, text=True)


def test_a_revision_is_pinned_cached_and_found_offline(hub: tuple[str, list[str]], tmp_path: Path) -> None:
    """The named revision is what is fetched; then it is there without a network, and no other one is."""
    address, asked = hub
    done = info("me/tiny@v1", address, tmp_path / "cache")
    assert done.returncode == 0, (done.stderr, asked)
    lines = dict(line.split(":", 1) for line in done.stdout.splitlines())
    assert lines["name"].strip() == "tiny"
    assert lines["licence"].strip() == "mit"
    assert COMMITS["v1"] in lines["from"], "the commit that it came from"
    fetched = [one for one in asked if "/resolve/" in one]
    assert fetched
    assert all(COMMITS["v1"] in one for one in fetched)

    asked.clear()
    again = info("me/tiny@v1", address, tmp_path / "cache", HF_HUB_OFFLINE="1")
    assert (again.returncode, again.stdout) == (0, done.stdout)
    assert not asked
    other = info("me/tiny", address, tmp_path / "cache", HF_HUB_OFFLINE="1")
    assert other.returncode == 2
    assert other.stderr.startswith("vision-lm: error: me/tiny: not on this machine")
    missing = info("me/tiny@v9", address, tmp_path / "cache")
    assert missing.returncode == 2
    assert "me/tiny: has no revision 'v9'" in missing.stderr


def test_a_disk_that_is_too_small_is_known_beforehand(
    hub: tuple[str, list[str]], announced: dict[str, int], tmp_path: Path
) -> None:
    """One line with what is needed, what is free, where and what to do; of what is too large no byte is fetched."""
    address, asked = hub
    announced["model.safetensors"] = 10**18
    done = info("me/tiny", address, tmp_path / "cache")
    assert (done.returncode, done.stdout) == (2, "")
    *_, said = done.stderr.splitlines()  # after the hub's own progress
    assert said.startswith("vision-lm: error: me/tiny: needs 1,000,000,000,")
    assert f" bytes and {tmp_path / 'cache'} has " in said
    assert said.endswith(" free; make room, or set HF_HUB_CACHE to a folder with more")
    fetched = [one for one in asked if one.startswith("GET") and "/resolve/" in one]
    assert fetched and all("config.json" in one for one in fetched), "which tell whose checkpoint it is"


@pytest.mark.parametrize("files", [("model.safetensors", "pytorch_model.bin"), ("pytorch_model.bin",)])
def test_weights_are_fetched_once(hub: tuple[str, list[str]], tmp_path: Path, files: tuple[str, ...]) -> None:
    """Of a repository of another project that has both, the safetensors alone; what came from where, `info` then tells."""
    address, asked = hub
    folder = tmp_path / "repository"
    shutil.rmtree(folder)
    parts = Parts("clip", SMALL_CLIP, TEXT)
    save(folder, config("clip", SMALL_CLIP, TEXT), parts.tensors(*NAMES))
    torch.save(parts.tensors(*NAMES), folder / "pytorch_model.bin")
    if "model.safetensors" not in files:
        (folder / "model.safetensors").unlink()
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    done = info("me/tiny@v1", address, tmp_path / "cache", XDG_CACHE_HOME=str(tmp_path / "kept"))
    assert done.returncode == 0, done.stderr
    weights = {one.rpartition("/")[2] for one in asked if one.endswith((".safetensors", ".bin"))}
    assert weights == {files[0]}
    lines = {key: value.strip() for key, value in (one.split(":", 1) for one in done.stdout.splitlines())}
    assert (lines["name"], lines["licence"]) == ("tiny", "apache-2.0")
    assert lines["origin"] == f"me/tiny@v1, commit {COMMITS['v1']}, imported as LLaVA-Phi and Mipha"
    asked.clear()
    offline = {"XDG_CACHE_HOME": str(tmp_path / "kept"), "HF_HUB_OFFLINE": "1"}
    again = info("me/tiny@v1", address, tmp_path / "cache", **offline)
    assert (again.returncode, again.stdout, asked) == (0, done.stdout, [])


def test_a_hub_that_does_not_answer(hub: tuple[str, list[str]], tmp_path: Path) -> None:
    """What is in the cache is loaded without it; what is not is one line, as is a repository that it does not have."""
    address, _ = hub
    nobody = "http://127.0.0.1:9"  # where nothing listens
    cache = tmp_path / "cache"
    there = info("me/tiny", address, cache)
    again = info("me/tiny", nobody, cache)
    assert (again.returncode, again.stdout) == (0, there.stdout)
    for name, asked, said in (
        ("me/tiny@v1", nobody, "not on this machine, and the hub cannot be reached"),
        ("me/other", address, "no folder here, and no repository on the hub"),
    ):
        done = info(name, asked, cache)
        assert (done.returncode, done.stdout) == (2, "")
        *_, line = done.stderr.splitlines()
        assert line.startswith(f"vision-lm: error: {name}: {said}")


def test_of_an_unknown_family_no_weights_are_fetched(hub: tuple[str, list[str]], tmp_path: Path) -> None:
    """Its config.json says that nobody here can read it: gigabytes later would be late."""
    address, asked = hub
    (tmp_path / "repository" / "config.json").write_text('{"model_type": "of-another-world"}')
    done = info("me/tiny", address, tmp_path / "cache")
    assert done.returncode == 2
    *_, said = done.stderr.splitlines()  # after the hub's own progress
    assert said.startswith("vision-lm: error: ") and "of-another-world" in said
    assert not [one for one in asked if "safetensors" in one]


def test_the_card_says_what_is_known(vit_checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Licence, data and figures where they are given, 'not stated' where not; one's own card is left alone."""
    vlm = VisionLM(vit_checkpoint, "cpu")
    vlm.save_pretrained(tmp_path, ModelCard("cc-by-4.0", ("COCO",), {"VQAv2": "77.5"}))
    text = (tmp_path / "README.md").read_text()
    assert read_licence(tmp_path / "README.md") == "cc-by-4.0"
    assert "- COCO" in text
    assert "- VQAv2: 77.5" in text
    assert "UNTRAINED" in text
    assert "16 tokens a picture" in text
    vlm.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == text
    vlm.save_pretrained(tmp_path / "plain")
    assert "Not stated." in (tmp_path / "plain" / "README.md").read_text()
    assert read_licence(tmp_path / "plain" / "README.md") is None
    assert read_checkpoint(tmp_path).config == vit_checkpoint.config
