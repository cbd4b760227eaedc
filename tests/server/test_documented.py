"""The lines of docs/server.md and README.md, run as they stand: curl, OpenAI's client, LangChain."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import vision_lm
from tests.server.conftest import Running, running
from vision_lm.model import VisionLM

ROOT = Path(__file__).parents[2]
PAGES = [(ROOT / name).read_text(encoding="utf-8") for name in ("docs/server.md", "README.md")]
PHOTO = ROOT / "demo" / "examples" / "cat.jpg"


@pytest.fixture(scope="module")
def mini() -> VisionLM:
    return vision_lm.load("mini", device="cpu")


@pytest.fixture(scope="module")
def served(mini: VisionLM) -> Iterator[Running]:
    with running({"mini": mini}) as one:
        yield one


def programs() -> list[str]:
    found = [one for page in PAGES for one in re.findall(r"```python\n(.*?)```", page, re.DOTALL)]
    return [one for one in found if "8000" in one]


def curls() -> list[str]:
    lines = [line.strip() for page in PAGES for line in page.splitlines() if line.startswith("    curl ")]
    return list(dict.fromkeys(lines))


def here(text: str, served: Running) -> str:
    """The documented address, and curl's without its scheme, become the running server's."""
    return re.sub(r"(http://127\.0\.0\.1:8000|localhost:8000)", served.url, text)


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
@pytest.mark.parametrize("line", curls())
def test_curl(line: str, served: Running, mini: VisionLM, tmp_path: Path) -> None:
    """A line of the page, word for word, gets what Python gets."""
    shutil.copy(PHOTO, tmp_path / "photo.jpg")
    done = subprocess.run(
        shlex.split(here(line, served)), cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True
    )
    expected = (
        mini.caption(PHOTO, length="short") if "caption" in line else mini.ask(PHOTO, "Is there a cat?")
    )
    assert json.loads(done.stdout)["text"] == expected.text


@pytest.mark.parametrize("program", programs(), ids=["openai", "langchain", "readme"])
def test_programs(program: str, served: Running, mini: VisionLM, tmp_path: Path) -> None:
    """A program of a page prints the answer that Python gets: LangChain's there twice, the second time as a stream."""
    pytest.importorskip("langchain_openai" if "langchain" in program else "openai")
    shutil.copy(PHOTO, tmp_path / "photo.jpg")
    environment = os.environ | {"LANGSMITH_TRACING": "false"}
    done = subprocess.run(
        [sys.executable, "-c", here(program, served)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    answer = mini.ask(PHOTO, "What is in the picture?")
    if "stream" in program:
        assert done.stdout == f"{answer.text}\n{answer.text}"
    elif "langchain" in program:
        assert done.stdout == f"{answer.text}\n"
    else:
        text, confidence = done.stdout.strip().rsplit(" ", 1)
        assert (text, float(confidence)) == (answer.text, pytest.approx(answer.confidence, abs=1e-5))
