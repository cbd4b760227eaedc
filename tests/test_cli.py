"""The command line: what it prints, on which stream, and with which exit status."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import scripted
from PIL import Image

from vision_lm.checkpoint import Checkpoint, write_checkpoint
from vision_lm.cli import main

COMMAND = [sys.executable, "-m", "vision_lm"]
SAYING = "The cube is red."


@pytest.fixture(scope="module")
def model(vit_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a model that answers everything with SAYING."""
    checkpoint = scripted(vit_checkpoint, f" {SAYING}")
    folder = tmp_path_factory.mktemp("model")
    write_checkpoint(folder, checkpoint.config, checkpoint.tensors, checkpoint.tokenizer)
    return str(folder)


@pytest.fixture
def images(tmp_path: Path) -> list[str]:
    noise = np.random.default_rng(0)
    paths = [tmp_path / f"{name}.png" for name in "abc"]
    for path in paths:
        Image.fromarray(noise.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(path)
    return [str(path) for path in paths]


@pytest.fixture
def animation(tmp_path: Path) -> str:
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "animation.gif", save_all=True, append_images=frames[1:])
    return str(tmp_path / "animation.gif")


def errors(printed: str) -> list[str]:
    """The error lines of stderr, which is otherwise only warnings."""
    lines = printed.splitlines()
    assert all(line.startswith(("vision-lm: error: ", "vision-lm: warning: ")) for line in lines), printed
    return [line for line in lines if line.startswith("vision-lm: error: ")]


def test_one_image_gives_its_caption_alone(
    model: str, images: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """`caption IMAGE` prints the sentence and nothing else."""
    assert main(["caption", images[0], "--model", model]) == 0
    assert capsys.readouterr().out == f"{SAYING}\n"


def test_several_images_give_a_line_each_and_a_bad_one_its_error(
    model: str, images: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """One bad image costs its own line only; the exit status tells of it at the end."""
    for command in (["caption"], ["ask"]):
        question = ["What colour is the cube?"] if command == ["ask"] else []
        assert main([*command, images[0], "missing.png", images[2], *question, "--model", model]) == 2
        printed = capsys.readouterr()
        assert printed.out.splitlines() == [f"{images[0]}: {SAYING}", f"{images[2]}: {SAYING}"]
        (error,) = errors(printed.err)
        assert error.startswith("vision-lm: error: missing.png: no such file")


def test_json_lines(model: str, images: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """`--json` prints one object a line, with the confidence."""
    assert main(["caption", *images, "--model", model, "--json", "--length", "short"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["image"] for line in lines] == images
    for line in lines:
        assert line.keys() == {"image", "text", "confidence", "finish_reason"}
        assert line["text"] == SAYING
        assert 0 <= line["confidence"] <= 1


def test_an_answer_is_streamed_to_a_terminal(
    model: str, images: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a terminal the pieces are written as they come, and are the same answer."""
    written: list[str] = []
    write = sys.stdout.write
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr(sys.stdout, "write", lambda text: (written.append(text), write(text))[1])
    assert main(["ask", images[0], "What colour is the cube?", "--model", model]) == 0
    assert capsys.readouterr().out == f"{SAYING}\n"
    assert sum(bool(piece.strip()) for piece in written) > 2


def test_chat_reads_questions_from_stdin(
    model: str, images: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line is a question; a bad one is refused and the conversation goes on, as the exit status tells."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("What is it?\n\nAn <image> here?\nAnd its colour?"))
    assert main(["chat", *images, "--model", model]) == 2
    printed = capsys.readouterr()
    assert printed.out == f"{SAYING}\n{SAYING}\n"
    (error,) = errors(printed.err)
    assert "'<image>'" in error


def test_a_warning_is_one_line_said_once(
    model: str, animation: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """An animation is answered from its first frame, with one warning however often it is given."""
    assert main(["caption", animation, animation, "--model", model]) == 0
    printed = capsys.readouterr()
    assert printed.out.count(SAYING) == 2
    warnings = [line for line in printed.err.splitlines() if "frames" in line]
    assert len(warnings) == 1
    assert warnings[0].startswith(f"vision-lm: warning: {animation}: 2 frames")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["caption", "a.png", "--model", "nowhere"], "nowhere: no such folder"),
        (["ask", "a.png", "  "], "the question is empty"),
        (["ask", "a.png"], "arguments are required: QUESTION"),
        (["ask", "a.png", "x" * 100_000], "100,000 characters"),
        (["caption", "a.png", "--length", "huge"], "invalid choice: 'huge'"),
        (["frobnicate"], "invalid choice: 'frobnicate'"),
        ([], "arguments are required: COMMAND"),
        (["info", "nowhere"], "nowhere: no such folder"),
        (["train", "align", "missing.yaml"], "missing.yaml: cannot be read"),
        (["train", "align", "missing.yaml", "--set", "steps"], "--set steps: give KEY=VALUE"),
        (["caption", "a.png", "--device", "abacus"], "abacus"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(
    model: str, capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str
) -> None:
    """Whatever is wrong with a command line, one line says so."""
    if "--model" not in arguments and arguments[:1] in (["caption"], ["ask"]):
        arguments = [*arguments, "--model", model]
    try:
        status: object = main(arguments)
    except SystemExit as exit:
        status = exit.code
    assert status == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (error,) = errors(printed.err)
    assert expected in error


def test_info(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`info` counts every parameter of the folder."""
    assert main(["info", model]) == 0
    lines = dict(line.split(":", 1) for line in capsys.readouterr().out.splitlines())
    assert lines["image tokens"].strip() == "16, from patches 32 wide"
    assert "UNTRAINED" in lines["projector"]
    parts = [int(lines[part].split()[-2].replace(",", "")) for part in ("encoder", "projector", "language")]
    assert f"{sum(parts):,} parameters" in lines["weights"]


def test_help_is_instant() -> None:
    """`--help` imports none of the heavy libraries."""
    program = (
        "import sys; from vision_lm.cli import main\n"
        "try: main(['caption', '--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'numpy', 'PIL', 'transformers', 'open_clip'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_captioning_does_not_import_transformers_itself(model: str, images: list[str]) -> None:
    """Inference needs torch and open_clip; where open_clip does without transformers, so do we."""
    program = (
        "import sys, open_clip; before = set(sys.modules)\n"
        "from vision_lm.cli import main\n"
        f"main(['caption', {images[0]!r}, '--model', {model!r}])\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(sorted(new & {'transformers', 'accelerate', 'peft', 'gradio', 'pandas', 'scipy'}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_broken_pipe_is_quiet(model: str) -> None:
    """A reader that closes early, as `head` does, is no error."""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([*COMMAND, "info", model], stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


def test_an_interrupt_is_quiet(model: str, images: list[str]) -> None:
    """Ctrl-C in the middle of a chat ends it without a stack trace."""
    process = subprocess.Popen(
        [*COMMAND, "chat", images[0], "--model", model],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts background jobs with the interrupt ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("What is it?\n")
    process.stdin.flush()
    assert process.stdout.readline() == f"{SAYING}\n"
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, printed = process.communicate(timeout=300)
    assert process.returncode == 130
    assert errors(printed) == []
