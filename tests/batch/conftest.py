"""A small model that knows something, and pictures about which it says different things."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

import vision_lm
from tests.batch.processes import Commands
from vision_lm.batch import Settings, run
from vision_lm.batch.summary import Summary
from vision_lm.model import VisionLM

COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "black", "white")
Answer = Callable[..., Summary]


@pytest.fixture(scope="session")
def mini() -> VisionLM:
    return vision_lm.load("mini", device="cpu")


@pytest.fixture
def answer(mini: VisionLM) -> Answer:
    """A run at the Python door, with the model that is loaded already."""

    def answer(inputs: Any, out: Path, **changes: Any) -> Summary:
        given = inputs if isinstance(inputs, (list, tuple)) else [inputs]
        settings = Settings(tuple(map(str, given)), out, **({"caption": "short", "workers": 2} | changes))
        return run(settings, mini)

    return answer


def draw(path: Path, seed: int, *, size: tuple[int, int] | None = None) -> Path:
    """A few shapes on a plain ground, as the seed says."""
    chance = random.Random(seed)
    image = Image.new(
        "RGB", size or (chance.randint(80, 200), chance.randint(80, 200)), chance.choice(COLOURS)
    )
    pen = ImageDraw.Draw(image)
    for _ in range(chance.randint(1, 4)):
        x, y, side = chance.randint(0, 140), chance.randint(0, 140), chance.randint(20, 60)
        shape = chance.choice((pen.ellipse, pen.rectangle))
        shape((x, y, x + side, y + side), fill=chance.choice(COLOURS))
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path


def draw_many(folder: Path, count: int, *, corrupt_every: int = 0) -> Path:
    """A folder of pictures; one in so many is cut in half."""
    for number in range(count):
        path = draw(folder / f"{number:04}.png", number)
        if corrupt_every and number % corrupt_every == corrupt_every - 1:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Six pictures."""
    return draw_many(tmp_path / "photos", 6)


def json_rows(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def csv_rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def untimed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows without what two runs may differ in: times, and the last digits of a confidence.

    In which batch a picture is answered decides the last bits of its probabilities.
    """
    return [
        {
            key: round(value, 2) if key.endswith("_confidence") and value is not None else value
            for key, value in row.items()
            if not key.endswith("_seconds")
        }
        for row in rows
    ]


def untimed_close(rows: list[dict[str, Any]], others: list[dict[str, Any]]) -> bool:
    """Equal, but for times and 0.001 of confidence."""
    for row, other in zip(rows, others, strict=True):
        for key in row:
            if key.endswith("_confidence") and row[key] is not None:
                assert row[key] == pytest.approx(other[key], abs=1e-3)
            elif not key.endswith("_seconds"):
                assert row[key] == other[key], (row, other)
    return True


@pytest.fixture(scope="session")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    found = Commands(tmp_path_factory.mktemp("commands"))
    yield found
    assert found.server.stdin
    found.server.stdin.close()
    found.server.wait()


@pytest.fixture(scope="session")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hundred pictures, two of them damaged."""
    return draw_many(tmp_path_factory.mktemp("many"), 100, corrupt_every=50)
