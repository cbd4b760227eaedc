"""Connections that never become requests: each is closed in time, and no other is."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.server.conftest import LONG, QUESTION, Running, running
from vision_lm.model import VisionLM
from vision_lm.server.settings import Settings

PATIENCE = 2  # seconds that these servers have: time to send a head for whoever means to
HEAD = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"


@pytest.fixture(scope="module")
def impatient(vlm: VisionLM) -> Iterator[Running]:
    with running({"tiny": vlm}, Settings(head_timeout=PATIENCE)) as one:
        yield one


def connected(server: Running) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])))
    connection.settimeout(60)
    return connection


def closed_while_it_drips(connection: socket.socket, endless: bytes) -> bool:
    """Whether the service closes it although there is always another byte; it would take them for over half a minute."""
    connection.settimeout(0.02)
    for number in range(2_000):
        try:
            connection.sendall(endless[number % len(endless)].to_bytes())
            if not connection.recv(1_000):
                return True
        except TimeoutError:
            continue
        except ConnectionError:
            return True
    return False


def test_a_client_that_says_nothing(impatient: Running) -> None:
    """An open connection costs the service memory and a place among its open files."""
    with connected(impatient) as connection:
        assert connection.recv(1) == b""


@pytest.mark.parametrize("begun", [b"", HEAD + b"X-Long: "], ids=["from the beginning", "within a header"])
def test_a_head_that_never_ends(impatient: Running, begun: bytes) -> None:
    """A byte at a time: each is news, and none of them gains it more time."""
    with connected(impatient) as connection:
        connection.sendall(begun)
        assert closed_while_it_drips(connection, b"a" if begun else b"GET /" + b"a" * 3_000)


def test_a_second_head_that_never_ends(impatient: Running) -> None:
    """A first request that was answered buys no patience for those after it."""
    with connected(impatient) as connection:
        connection.sendall(HEAD + b"\r\n")
        assert connection.recv(10_000).startswith(b"HTTP/1.1 200")
        connection.sendall(HEAD + b"X-Long: ")
        assert closed_while_it_drips(connection, b"a")


def test_a_body_that_drips_on_after_the_answer(impatient: Running) -> None:
    """Nobody reads it any more: the answer was a refusal by the head alone."""
    with connected(impatient) as connection:
        connection.sendall(HEAD.replace(b"GET", b"POST") + b"Content-Length: 1000000\r\n\r\n")
        assert connection.recv(10_000).startswith(b"HTTP/1.1 405")
        assert closed_while_it_drips(connection, b"a")


def test_an_answer_may_take_longer(slow: VisionLM) -> None:
    """The limit is the head's: no long answer is cut, and no connection closed that waits for another request."""
    with running({"slow": slow}, Settings(head_timeout=PATIENCE)) as server:
        client = http.client.HTTPConnection("127.0.0.1", int(server.url.rpartition(":")[2]), timeout=60)
        body = {"messages": [{"role": "user", "content": QUESTION}]} | LONG | {"max_tokens": 300}
        for _ in range(2):
            began = time.monotonic()
            headers = {"Content-Type": "application/json"}
            client.request("POST", "/v1/chat/completions", json.dumps(body), headers)
            client.auto_open = 0  # the second request is on the same connection, or fails
            assert json.load(client.getresponse())["usage"]["completion_tokens"] == 300
            assert time.monotonic() - began > PATIENCE
            time.sleep(PATIENCE + 0.5)
        client.close()


@pytest.mark.parametrize("begun", [b"GET /", HEAD + b"X-Long: "], ids=["of its path", "of a header"])
def test_a_head_without_end_is_cut_by_its_size(impatient: Running, begun: bytes) -> None:
    """As fast as it may come: the service would keep all of it, before it has seen any key."""
    with connected(impatient) as connection:
        sent = 0
        with suppress(ConnectionError, TimeoutError):
            connection.sendall(begun)
            while sent < 50 << 20:
                sent += connection.send(b"a" * 65_536)
        assert sent < 10 << 20


def test_a_large_body_is_no_head(impatient: Running) -> None:
    """Neither of a request that is read nor of one that is refused before: who sends it all still reads the answer."""
    body = b"{" + b" " * (1 << 20)
    for path, status in ((b"/v1/ask", b"400"), (b"/v1/nothing", b"404")):
        with connected(impatient) as connection:
            head = b"POST " + path + b" HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            connection.sendall(head + f"Content-Length: {len(body)}\r\n\r\n".encode())
            for start in range(0, len(body), 65_536):
                connection.sendall(body[start : start + 65_536])
            assert connection.recv(10_000).startswith(b"HTTP/1.1 " + status)
