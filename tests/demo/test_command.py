"""`vision-lm demo`: what it refuses in one line, and what it leaves behind, which is nothing."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

import demo.page
from demo.arguments import AUTH_VARIABLE
from demo.in_process import InProcess
from demo.launch import free_port, opened, own_folder
from tests.patience import until
from vision_lm.checkpoint import Checkpoint, write_checkpoint
from vision_lm.cli import main
from vision_lm.model import VisionLM


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that such a command ends with."""
    try:
        status = main(["demo", *arguments])
    except SystemExit as end:  # of the parser
        status = int(str(end.code))
    printed = capsys.readouterr()
    assert status == 2 and printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith("vision-lm: error: ")
    return line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "./nowhere"], r"nowhere.*(no such|not a|neither|folder)"),
        (["--server", "http://127.0.0.1:9"], "http://127.0.0.1:9 does not answer .*vision-lm serve"),
        (["--server", "localhost:8000"], "'localhost:8000' is no address; give http://HOST:PORT"),
        (["--server", "http://127.0.0.1:9", "--model", "mini"], "not allowed with argument"),
        (["--server", "http://127.0.0.1:9", "--api-key-file", "nowhere"], "nowhere: cannot be read"),
        (
            ["--server", "http://127.0.0.1:9", "--device", "cpu"],
            "are the server's own affair; leave them out",
        ),
        (["--server", "http://here:port"], "'http://here:port' is no address"),
        (["--api-key-file", "nowhere"], "--api-key-file is the key of a server; give --server URL"),
        (["--host", "0.0.0.0"], "0.0.0.0 can be reached from other machines, and no --auth is set"),
        (["--share"], "--share gives the page an address for everyone, and no --auth is set"),
        (["--auth", "nobody"], "--auth: entry 1 is not USER:PASSWORD; give a name, a colon, a password"),
        (["--auth-file", "nowhere"], "--auth-file nowhere: cannot be read"),
        (["--port", "99999"], "'99999' is not a port from 0 to 65535"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    if "--port" not in arguments:
        arguments = [*arguments, "--port", "0"]
    assert re.search(message, refused(arguments, capsys))


def test_a_port_in_use(capsys: pytest.CaptureFixture[str]) -> None:
    """Found out before a model is loaded: the checkpoint does not exist either, and that is not what is said."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = refused(["--port", str(port), "--model", "./nowhere"], capsys)
    assert f"127.0.0.1:{port} cannot be served (Address already in use); stop what uses it, or choose" in line


def test_accounts_from_a_file_and_from_the_environment(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A password may hold colons; what is wrong is said without repeating it."""
    file = tmp_path / "accounts"
    file.write_text("ada:one:two\n\nsecretsecret\n")
    line = refused(["--auth-file", str(file), "--port", "0"], capsys)
    assert "entry 2 is not USER:PASSWORD" in line and "secretsecret" not in line
    file.write_text("\n")
    assert "it is empty" in refused(["--auth-file", str(file), "--port", "0"], capsys)
    monkeypatch.setenv(AUTH_VARIABLE, ":x")
    assert f"{AUTH_VARIABLE}: entry 1" in refused(["--port", "0"], capsys)


@pytest.mark.slow
def test_from_start_to_end(vit_checkpoint: Checkpoint, tmp_path: Path) -> None:
    """It says where it is, serves a page that names no other host, and at SIGTERM leaves with 0 and without a trace."""
    folder, temporary = tmp_path / "model", tmp_path / "temporary"
    temporary.mkdir()
    write_checkpoint(folder, vit_checkpoint.config, vit_checkpoint.tensors, vit_checkpoint.tokenizer)
    command = [
        sys.executable,
        "-m",
        "vision_lm",
        "demo",
        "--port",
        "0",
        "--model",
        str(folder),
        "--device",
        "cpu",
    ]
    environment = os.environ | {"TMPDIR": str(temporary), "VISION_LM_DEMO_AUTH": "ada:secret"}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    try:
        assert process.stdout is not None
        said = process.stdout.readline()
        assert (found := re.match(r"(http://127\.0\.0\.1:\d+/?): the page is open; Ctrl-C ends it\n", said))
        page = httpx.get(found[1], timeout=60)
        assert page.status_code == 200
        assert not re.search(r"(src|href)=.https?://(?!127)|fonts\.g|@import", page.text)
        token = httpx.post(f"{found[1]}login", data={"username": "ada", "password": "secret"}, timeout=60)
        upload = httpx.post(
            f"{found[1]}gradio_api/upload",
            files={"files": ("a.png", b"x" * 1000)},
            cookies=token.cookies,
            timeout=60,
        )
        assert upload.status_code == 200
        until(lambda: list(temporary.rglob("a.png")))
    finally:
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 0
    assert list(temporary.rglob("a.png")) == [] and list(temporary.glob("vision-lm-demo-*")) == []
    assert [
        line for line in errors.splitlines() if not line.startswith("vision-lm: warning: the projector")
    ] == []


@pytest.mark.slow
def test_uploads_are_deleted_after_their_time(vlm: VisionLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the page is open, too: otherwise a busy one fills the disk."""
    monkeypatch.setattr(demo.page, "CLEAN_EVERY", 1)
    monkeypatch.setattr(demo.page, "KEEP_FOR", 2)
    with (
        own_folder() as folder,
        opened(InProcess({"tiny": vlm}), "127.0.0.1", free_port("127.0.0.1", 0, ())) as where,
    ):
        began = time.monotonic()
        upload = httpx.post(
            f"{where[0]}gradio_api/upload", files={"files": ("a.png", b"x" * 1000)}, timeout=60
        )
        (path,) = upload.json()
        assert Path(path).is_relative_to(folder)
        until(lambda: not Path(path).exists())
        assert time.monotonic() - began >= 1
    assert not folder.exists()
