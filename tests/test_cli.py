"""The command line: what it prints, on which stream, and with which exit status."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer

from tests.conftest import scripted
from vision_lm.checkpoint import Checkpoint, write_checkpoint
from vision_lm.cli import main
from vision_lm.config import Calibration

COMMAND = [sys.executable, "-m", "vision_lm"]
SAYING = "The cube is red."


@pytest.fixture(scope="module")
def model(vit_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a model that answers everything with SAYING."""
    checkpoint = scripted(vit_checkpoint, f" {SAYING}")
    config = dataclasses.replace(checkpoint.config, projector_trained=True)  # so that nothing warns
    folder = tmp_path_factory.mktemp("model")
    write_checkpoint(folder, config, checkpoint.tensors, checkpoint.tokenizer)
    return str(folder)


@pytest.fixture
def images(tmp_path: Path) -> list[str]:
    noise = np.random.default_rng(0)
    paths = [tmp_path / f"{name}.png" for name in "abc"]
    for path in paths:
        Image.fromarray(noise.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(path)
    return [str(path) for path in paths]


@pytest.fixture
def bad_files(model: str, images: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What people hand over by mistake, in the current directory: pictures, and checkpoints."""
    monkeypatch.chdir(tmp_path)
    jpeg = io.BytesIO()
    Image.open(images[0]).save(jpeg, "JPEG")
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    Path("directory.png").mkdir()
    Path("empty.png").write_bytes(b"")
    Path("half.jpg").write_bytes(jpeg.getvalue()[:-300])
    Path("text.png").write_text("no picture")
    Path("huge.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 9) + b"IDAT")
    shutil.copytree(model, "half-written")
    os.truncate("half-written/model.safetensors", 5_000)
    shutil.copytree(model, "wrong-key")
    config = json.loads(Path("wrong-key/config.json").read_text())
    Path("wrong-key/config.json").write_text(json.dumps(config | {"colour": "red"}))


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


@pytest.mark.parametrize("quantize", ["int8", "int4"])
def test_weights_in_few_bits_caption_too(
    model: str, images: list[str], capsys: pytest.CaptureFixture[str], quantize: str
) -> None:
    """--quantize reaches the model: another one speaks, and it does."""
    assert main(["caption", images[0], "--model", model, "--quantize", quantize]) == 0
    assert capsys.readouterr().out.strip()


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


def test_json_lines(
    model: str, images: list[str], tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--json` prints one object a line, with the confidence and the tokens."""
    assert main(["caption", *images, "--model", model, "--json", "--length", "short"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["image"] for line in lines] == images
    for line in lines:
        assert line.keys() == {
            "image",
            "text",
            "confidence",
            "finish_reason",
            "tokens",
            "token_logprobs",
            "unanswerable",
        }
        assert line["text"] == SAYING
        assert tokenizer.decode(line["tokens"]).strip() == SAYING
        assert len(line["token_logprobs"]) == len(line["tokens"])
        assert 0 <= line["confidence"] <= 1


def test_an_answer_that_is_not_to_be_relied_on(
    vit_checkpoint: Checkpoint, images: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Below the checkpoint's threshold a warning says so, on stderr; a program has the flag."""
    checkpoint = scripted(vit_checkpoint, " A cat")
    config = dataclasses.replace(
        checkpoint.config, projector_trained=True, calibration=Calibration(unanswerable=1.0)
    )
    write_checkpoint(tmp_path / "model", config, checkpoint.tensors, checkpoint.tokenizer)
    ask = ["ask", images[0], "What is this?", "--model", str(tmp_path / "model")]
    assert main(ask) == 0
    printed = capsys.readouterr()
    assert printed.out == "A cat\n" and "not sure of this answer" in printed.err
    assert main([*ask, "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["unanswerable"] is True and "not sure" not in printed.err


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


@pytest.mark.parametrize("name", ["animation.gif", "pages.tiff"])
def test_a_warning_is_one_line_said_once(
    model: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of several frames or pages the first is answered, with one warning however often the file is given."""
    path = str(tmp_path / name)
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue")]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    assert main(["caption", path, path, "--model", model]) == 0
    printed = capsys.readouterr()
    assert printed.out.count(SAYING) == 2
    warnings = [line for line in printed.err.splitlines() if "frames" in line]
    assert len(warnings) == 1
    assert warnings[0].startswith(f"vision-lm: warning: {path}: 2 frames or pages")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        # pictures
        (["caption", "missing.png"], "missing.png: no such file"),
        (["caption", "directory.png"], "directory.png: this is a directory"),
        (["caption", "empty.png"], "empty.png: the file is empty"),
        (["caption", "half.jpg"], "half.jpg: the JPEG data is truncated"),
        (["caption", "text.png"], "text.png: this is text, not a picture"),
        (["caption", "huge.png"], "huge.png: 60,000 x 60,000 pixels is too large"),
        (["caption", "line\nbreak.png"], "line?break.png: no such file"),
        (["ask", "text.png", "What is it?"], "text.png: this is text, not a picture"),
        (["chat", "text.png"], "text.png: this is text, not a picture"),
        (["caption", "http://example.com/a.png?key=s"], "http://example.com/a.png: not fetched without perm"),
        (["chat", "https://example.com/a.png"], "--allow-url-host example.com"),
        (["caption", "http://127.0.0.1/a.png", "--allow-url-host", "127.0.0.1"], "127.0.0.1 is not public"),
        (["caption", "http://[::1]:8/a.png", "--allow-url-host", "::1:8"], "::1 is not public"),
        (["chat", "http://127.0.0.1/a.png", "--allow-url-host", "127.0.0.1"], "127.0.0.1 is not public"),
        # questions
        (["ask", "a.png", "  "], "the question is empty"),
        (["ask", "a.png", "x" * 100_000], "100,000 characters"),
        (["ask", "a.png", "What is <image>?"], "the question contains '<image>'"),
        (["ask", "a.png", "\udcff?"], "the question has '\\udcff' at place 1"),
        # checkpoints
        (["caption", "a.png", "--model", "nowhere"], "nowhere: no such folder"),
        (["caption", "a.png", "--model", "no\nwhere"], "no where: no such folder"),
        (["caption", "a.png", "--model", "half-written"], "model.safetensors: damaged or half-written"),
        (["caption", "a.png", "--model", "wrong-key"], "config.json: unknown key 'colour'"),
        (["info", "nowhere"], "nowhere: no such folder"),
        # the command line itself
        (["ask", "a.png"], "arguments are required: QUESTION"),
        (["caption", "a.png", "--length", "huge"], "invalid choice: 'huge'"),
        (["caption", "a.png", "--two\nlines"], "unrecognized arguments: --two lines"),
        (["caption", "a.png", "--device", "abacus"], "abacus"),
        (["caption", "a.png", "--quantize", "int3"], "invalid choice: 'int3'"),
        (["frobnicate"], "invalid choice: 'frobnicate'"),
        ([], "arguments are required: COMMAND"),
        (["train", "align", "missing.yaml"], "missing.yaml: cannot be read"),
        (["train", "align", "missing.yaml", "--set", "steps"], "--set steps: give KEY=VALUE"),
    ],
)
@pytest.mark.usefixtures("bad_files")
def test_mistakes_are_one_line_and_exit_2(
    model: str, capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str
) -> None:
    """Whatever is wrong with a command line or a file, one line of stderr says so, and stdout is empty."""
    if "--model" not in arguments and arguments[:1] in (["caption"], ["ask"], ["chat"]):
        arguments = [*arguments, "--model", model]
    try:
        status: object = main(arguments)
    except SystemExit as exit:
        status = exit.code
    assert status == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith("vision-lm: error: ")
    assert expected in line


def test_a_permitted_url_is_answered(
    model: str, images: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--allow-url-host` may be repeated, and reaches the fetching of every command."""
    asked: list[tuple[str, list[str]]] = []

    def fetch_url(url: str, *, allow_hosts: list[str], max_bytes: int) -> bytes:
        asked.append((url, allow_hosts))
        return Path(images[0]).read_bytes()

    monkeypatch.setattr("vision_lm.fetch.fetch_url", fetch_url)
    monkeypatch.setattr(sys, "stdin", io.StringIO("What is it?"))
    url = "https://b.test/a.png"
    for command in (["caption", url], ["ask", url, "What is it?"], ["chat", url]):
        hosts = ["--allow-url-host", "a.test", "--allow-url-host", "b.test"]
        assert main([*command, *hosts, "--model", model]) == 0
        assert capsys.readouterr().out == f"{SAYING}\n"
    assert asked == [(url, ["a.test", "b.test"])] * 3


def test_info(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`info` counts every parameter of the folder."""
    assert main(["info", model]) == 0
    lines = dict(line.split(":", 1) for line in capsys.readouterr().out.splitlines())
    assert lines["image tokens"].strip() == "16, from patches 32 wide"
    assert lines["projector"].strip().startswith("trained")
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


def test_bytes_that_are_no_text_cost_one_question(model: str, images: list[str]) -> None:
    """In a chat from a file of another encoding, the line that is not UTF-8 is refused and the others are answered."""
    done = subprocess.run(
        [*COMMAND, "chat", images[0], "--model", model],
        input=b"What is it?\nQu\xe9?\nWhat?\n",
        capture_output=True,
        env=os.environ | {"PYTHONUTF8": "1"},
    )
    assert done.returncode == 2
    assert done.stdout.decode() == f"{SAYING}\n{SAYING}\n"
    (error,) = errors(done.stderr.decode())
    assert "at place 3" in error
