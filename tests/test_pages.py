"""What README.md and docs/ tell people to type: the first program as it stands, and that no command has lost an option."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

import vision_lm
from vision_lm.cli import _parser

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
EXAMPLES = ROOT / "demo" / "examples"


def commands() -> list[str]:
    """Every line of a page that begins with the command, without what is said about it; lines that go on are one."""
    found: dict[str, None] = {}
    for page in PAGES:
        text = re.sub(r"\\\n\s+", "", page.read_text(encoding="utf-8"))
        for line in re.findall(
            r"^    (vision-lm [^\[\n]+)$", text, re.MULTILINE
        ):  # one with [ ] is a pattern
            found[re.split(r"\s#\s", line)[0].strip()] = None
    return list(found)


@pytest.mark.parametrize("line", commands())
def test_every_command_of_the_pages_is_one(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Its options exist and its values are allowed; what it would do is other tests' business."""
    words = shlex.split(line)[1:]
    try:
        _parser().parse_args(words)
    except SystemExit as end:
        assert end.code == 0, capsys.readouterr().err  # --help and --version end, too


def test_the_first_program_runs_as_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Somebody copies it out of the README: a caption with its confidence, a yes, and an answer in pieces."""
    for name in ("photo", "a", "b"):
        shutil.copy(EXAMPLES / "cat.jpg", tmp_path / f"{name}.jpg")
    monkeypatch.chdir(tmp_path)
    program = re.findall(r"```python\n(.*?)```", PAGES[0].read_text(encoding="utf-8"), re.DOTALL)[0]
    assert "vision_lm.load()" in program
    exec(compile(program, "README.md", "exec"), {})
    first, there, streamed = capsys.readouterr().out.split("\n", 2)
    vlm = vision_lm.load()
    caption = vlm.caption("photo.jpg")
    assert first == f"{caption} {caption.confidence}"
    assert there == "yes"
    assert streamed == vlm.ask("photo.jpg", "What is in the picture?").text
