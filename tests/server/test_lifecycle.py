"""Queue, disconnects, timeouts and the end: what runs is bounded, and what nobody waits for is stopped."""

from __future__ import annotations

import asyncio
import dataclasses
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from anyio import CapacityLimiter

from tests.patience import until
from tests.server.conftest import LONG, QUESTION, asked, events, refusal, running
from vision_lm.checkpoint import Checkpoint, write_checkpoint
from vision_lm.cli import main
from vision_lm.model import VisionLM
from vision_lm.server.service import in_thread
from vision_lm.server.settings import Settings

CHAT = "/v1/chat/completions"


def long_chat(**more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": QUESTION}]} | LONG | more


def test_beyond_the_queue_limit_429_at_once(slow: VisionLM) -> None:
    """Those let in are answered in full; the others are refused without waiting, with Retry-After."""
    with running({"slow": slow}, Settings(max_queue=3)) as server:
        done: list[httpx.Response] = []

        def ask() -> None:
            done.append(httpx.post(server.url + CHAT, json=long_chat(), timeout=120))

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        until(lambda: server.app.state.service.admission.taken == 3)
        refused = server.client.post(CHAT, json=long_chat())
        assert "at most 3 may be" in refusal(refused, 429)["message"]
        assert refused.headers["retry-after"] == "1"
        assert not done  # it waited for none of them
        assert server.client.get("/healthz").status_code == 200  # which is no work
        for thread in threads:
            thread.join()
        assert [one.json()["usage"]["completion_tokens"] for one in done] == [LONG["max_tokens"]] * 3
        until(lambda: server.app.state.service.admission.taken == 0, 10)
        refusal(server.client.post(CHAT, json=long_chat(n=4)), 429)  # four answers take four places
        assert server.client.post(CHAT, json=long_chat(n=3, max_tokens=1)).status_code == 200
        until(lambda: server.app.state.service.admission.taken == 0, 10)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_hangs_up_frees_its_pages(slow: VisionLM, stream: bool, data_url: str) -> None:
    """In the middle of a stream, or while it waits for the whole: the engine stops and the pages are free."""
    with running({"slow": slow}) as server:
        body = long_chat(stream=stream, n=2, max_tokens=1000)
        body["messages"][0]["content"] = asked(data_url)
        address = ("127.0.0.1", int(server.url.rpartition(":")[2]))
        with socket.create_connection(address) as connection:
            data = json.dumps(body).encode()
            head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(data)}"
            connection.sendall(head.encode() + b"\r\n\r\n" + data)
            until(lambda: slow.engine.stats.generated_tokens > 10)
            assert slow.engine.pages.used > 0
        until(lambda: slow.engine.pages.used == 0, 10)
        until(lambda: server.app.state.service.admission.taken == 0, 10)
        assert slow.engine.stats.generated_tokens < 2000
        until(lambda: 'status="499"' in server.client.get("/metrics").text, 10)


def test_a_client_that_leaves_before_its_picture_is_read(slow: VisionLM, data_url: str) -> None:
    """Nothing is left behind, whatever the moment."""
    with running({"slow": slow}) as server:
        for delay in (0.0, 0.001, 0.003, 0.01, 0.03):
            body = long_chat(stream=True)
            body["messages"][0]["content"] = asked(data_url)
            with pytest.raises(httpx.TimeoutException):
                httpx.post(server.url + CHAT, json=body, timeout=httpx.Timeout(5, read=0.001 + delay))
        until(lambda: server.app.state.service.admission.taken == 0, 10)
        until(lambda: slow.engine.pages.used == 0 and not slow.engine.scheduler.busy, 10)


def test_a_request_has_a_time(slow: VisionLM) -> None:
    """Whole it is 504; a stream ends with an error; either way the engine stops."""
    with running({"slow": slow}, Settings(timeout=2)) as server:
        whole = server.client.post(CHAT, json=long_chat(max_tokens=1000))
        assert "not complete after 2 s" in refusal(whole, 504)["message"]
        stream = events(server.client.post(CHAT, json=long_chat(max_tokens=1000, stream=True)))
        assert stream[-1]["error"]["code"] == "timeout"
        assert stream[1]["choices"][0]["delta"]["content"]
        until(lambda: slow.engine.pages.used == 0, 10)


def test_the_engines_failure_is_one_requests_500(slow: VisionLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message tells nothing of the inside, and the next request is answered."""
    with running({"slow": slow}) as server:
        with monkeypatch.context() as broken:
            broken.setattr(slow.engine.decoder, "decode", lambda *_: 1 / 0)
            error = refusal(server.client.post(CHAT, json=long_chat()), 500)
            assert "ZeroDivision" not in json.dumps(error)
        assert server.client.post(CHAT, json=long_chat(max_tokens=2)).status_code == 200
        assert slow.engine.pages.used == 0


def test_what_outlasts_the_drain_is_cut(slow: VisionLM) -> None:
    """A stopping server does not wait for ever."""
    with running({"slow": slow}, Settings(drain_timeout=0.3)) as server:
        lines = 0
        with (
            pytest.raises(httpx.RemoteProtocolError),
            server.client.stream("POST", CHAT, json=long_chat(max_tokens=1000, stream=True)) as response,
        ):
            for _ in response.iter_lines():
                lines += 1
                if lines == 4:
                    server.server.handle_exit(signal.SIGTERM, None)
        assert 4 <= lines < 1000
        until(lambda: slow.engine.pages.used == 0, 10)


@pytest.fixture(scope="module")
def folder(endless_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = dataclasses.replace(endless_checkpoint.config, projector_trained=True)
    path = tmp_path_factory.mktemp("endless")
    write_checkpoint(path, config, endless_checkpoint.tensors, endless_checkpoint.tokenizer)
    return path


@pytest.mark.slow
def test_without_its_engine_the_service_ends(folder: Path) -> None:
    """Killed, as for lack of memory: who waits is told, and the status is one that makes a supervisor start it again."""
    command = [sys.executable, "-m", "vision_lm", "serve", "--model", f"endless={folder}", "--port", "0"]
    process = subprocess.Popen([*command, "--device", "cpu"], stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        lines = [json.loads(process.stderr.readline()) for _ in range(2)]
        with httpx.Client(base_url=f"http://127.0.0.1:{lines[1]['port']}", timeout=60) as client:
            body = long_chat(stream=True, max_tokens=1000, n=4)
            with client.stream("POST", CHAT, json=body) as response:
                received = response.iter_lines()
                next(received)
                os.kill(int(lines[0]["engine_pid"]), signal.SIGKILL)
                last = [line for line in received if line][-1]
            assert json.loads(last.removeprefix("data: "))["error"]["code"] == "engine_gone"
        assert process.wait(60) == 2
        assert "the engine's process has ended" in process.stderr.read()
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_sigterm_drains(folder: Path) -> None:
    """The command as it is: an idle connection stays; then a running stream is finished, new work and readyz get 503, and
    the exit status is 0.
    """
    key = "the-key-of-this-test"
    command = [sys.executable, "-m", "vision_lm", "serve", "--model", f"endless={folder}", "--port", "0"]
    process = subprocess.Popen(
        [*command, "--device", "cpu", "--max-tokens", "3000", "--drain-timeout", "300"],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"VISION_LM_API_KEY": key},
    )
    try:
        assert process.stderr is not None
        lines = [json.loads(process.stderr.readline()) for _ in range(2)]
        assert [line["event"] for line in lines] == ["model loaded", "listening"]
        headers = {"Authorization": f"Bearer {key}"}
        with httpx.Client(
            base_url=f"http://127.0.0.1:{lines[1]['port']}", headers=headers, timeout=300
        ) as client:
            assert client.get("/readyz").status_code == 200
            idle = http.client.HTTPConnection("127.0.0.1", lines[1]["port"])
            for pause in (0, 7):  # two seconds longer than uvicorn by itself keeps one
                time.sleep(pause)
                idle.request("GET", "/healthz")
                idle.auto_open = 0
                assert idle.getresponse().read()
            idle.close()
            # More than sockets hold, so that the stream lasts until it is read, however fast the model is.
            body = long_chat(stream=True, max_tokens=3000, n=4, logprobs=True, top_logprobs=20)
            with client.stream("POST", CHAT, json=body) as response:
                received = response.iter_lines()
                next(received)
                process.send_signal(signal.SIGTERM)
                until(lambda: client.get("/readyz").status_code == 503)
                assert refusal(client.get("/readyz"), 503)["code"] == "draining"
                refused = client.post(CHAT, json=long_chat())
                assert refusal(refused, 503)["code"] == "draining"
                assert refused.headers["retry-after"]
                assert client.get("/healthz").status_code == 200
                rest = [line for line in received if line]
        assert rest[-1] == "data: [DONE]"
        assert json.loads(rest[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
        assert process.wait(60) == 0
        assert [json.loads(line)["event"] for line in process.stderr][-1] == "stopped"
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "a=nowhere"], "nowhere: no such folder"),
        (["--model", "nowhere"], "--model 'nowhere': give NAME=PATH"),
        (["--model", "a b=mini"], "give NAME=PATH"),
        (["--model", "a=mini", "--model", "a=mini"], "a is given twice"),
        (["--port", "TAKEN"], "cannot be served (Address already in use)"),
        (["--port", "70000"], "'70000' is not a port"),
        (["--host", "no.such.host.invalid"], "no.such.host.invalid:0 cannot be served"),
        (["--host", "0.0.0.0"], "no API key is set"),
        (["--api-key-file", "missing"], "--api-key-file missing: cannot be read (No such file"),
        (["--api-key-file", "short"], "the API key in short is unfit"),
        (["--api-key", "secret-on-the-line"], "everyone on this machine can read a command line"),
        (["--max-queue", "0"], "'0' is not a whole number of at least 1"),
        (["--timeout", "-1"], "'-1' is no number of seconds"),
    ],
)
def test_mistakes_on_the_command_line(
    arguments: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One line and exit status 2, before a model is loaded where it can be known before."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VISION_LM_API_KEY", raising=False)
    Path("short").write_text("abc\n")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        arguments = [port if one == "TAKEN" else one for one in arguments]
        if "--port" not in arguments:
            arguments = [*arguments, "--port", "0"]
        try:
            status: object = main(["serve", *arguments])
        except SystemExit as exit:
            status = exit.code
    assert status == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith("vision-lm: error: ")
    assert said in line
    assert "secret-on-the-line" not in line


def test_the_key_comes_from_a_file_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file goes before the variable; the settings never show it."""
    from vision_lm.cli import _parser
    from vision_lm.server.arguments import settings

    file = tmp_path / "key"
    file.write_text("key-of-the-file\nsecond line\n")
    monkeypatch.setenv("VISION_LM_API_KEY", "key-of-the-environment")
    parse = _parser().parse_args
    assert settings(parse(["serve"])).api_key == "key-of-the-environment"
    with_file = settings(parse(["serve", "--api-key-file", str(file)]))
    assert with_file.api_key == "key-of-the-file"
    assert "key-of" not in repr(with_file)
    assert settings(parse(["serve"])) == dataclasses.replace(Settings(), api_key="key-of-the-environment")


def test_who_waits_for_a_place_is_let_go_at_once() -> None:
    """A request that is given up while it waits for a decoder never decodes, and does not wait for those who do."""
    begun, done = [], threading.Event()

    async def give_up_the_second() -> float:
        limiter = CapacityLimiter(1)
        first = asyncio.ensure_future(in_thread(lambda: begun.append(1) or done.wait(60), limiter))
        second = asyncio.ensure_future(in_thread(lambda: begun.append(2), limiter))
        while not begun:
            await asyncio.sleep(0.01)
        second.cancel()
        await asyncio.wait((second,), timeout=30)
        assert second.cancelled()
        done.set()
        await first
        return limiter.borrowed_tokens

    assert asyncio.run(give_up_the_second()) == 0
    assert begun == [1]
