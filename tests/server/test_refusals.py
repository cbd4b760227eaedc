"""Every refusal: its status, OpenAI's shape, and a line that says what to do."""

from __future__ import annotations

import base64
import gzip
import json
import re
import struct
import time
import zlib
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.server.conftest import QUESTION, Running, asked, refusal, running
from vision_lm.model import VisionLM
from vision_lm.server.settings import Settings

CHAT = "/v1/chat/completions"


def bomb(side: int = 60_000) -> bytes:
    """A PNG of few bytes whose header declares gigabytes of pixels."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 9) + b"IDAT"


def as_url(data: bytes, media_type: str = "image/png") -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def test_paths_and_methods(server: Running) -> None:
    """404 and 405 are ours too; 405 names what is allowed."""
    assert "/openapi.json" in refusal(server.client.get("/v1/nothing"), 404)["message"]
    for method, path, allowed in (
        ("GET", CHAT, "POST"),
        ("POST", "/healthz", "GET"),
        ("PUT", "/v1/ask", "POST"),
    ):
        response = server.client.request(method, path)
        assert allowed in refusal(response, 405)["message"]
        assert response.headers["allow"] == allowed


@pytest.mark.parametrize("path", [CHAT, "/v1/caption", "/v1/ask"])
@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"\xff\xfe", 400),
        (b"[" * 100_000, 400),
        (b"[]", 422),
        (b"3", 422),
        (b"{}", 422),
    ],
)
def test_malformed_bodies(server: Running, path: str, body: bytes, status: int) -> None:
    """What is no JSON is 400; JSON that is no request is 422, with the name of a field where one is wrong."""
    response = server.client.post(path, content=body, headers={"Content-Type": "application/json"})
    if body == b"" and path == CHAT:
        status = 422  # a body that is missing
    error = refusal(response, status)
    if body == b"{}":
        assert error["param"] == ("messages" if path == CHAT else "image")
        assert error["code"] == "missing"


@pytest.mark.parametrize(
    ("change", "status", "said"),
    [
        ({"messages": []}, 422, "messages: "),
        ({"messages": [{"role": "king", "content": "x"}]}, 422, "messages.0"),
        ({"messages": [{"role": "user", "content": 5}]}, 422, "messages.0.content: "),
        ({"messages": [{"role": "user", "content": []}]}, 422, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, 422, "messages.0.content.0"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, 400, "is no character"),
        ({"messages": [{"role": "user", "content": " "}]}, 400, "question is empty"),
        ({"messages": [{"role": "user", "content": "x" * 9_000}]}, 400, "9,000 characters"),
        ({"messages": [{"role": "user", "content": "an <image>?"}]}, 400, "'<image>'"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, 400, "begin with the user"),
        ({"messages": [{"role": "system", "content": "x"}]}, 400, "end with a user message"),
        ({"temprature": 1}, 422, "temprature"),
        ({"temperature": -1}, 422, "temperature"),
        ({"temperature": "hot"}, 422, "temperature"),
        ({"max_tokens": 0}, 422, "max_tokens"),
        ({"max_tokens": 10**6}, 400, "allowed: up to 1,024"),
        ({"max_tokens": 1000}, 400, "256 positions"),
        ({"max_completion_tokens": 10**30}, 400, "allowed: up to 1,024"),
        ({"seed": 2**64}, 422, "seed"),
        ({"n": 100}, 422, "n: "),
        ({"top_logprobs": 3}, 400, "logprobs: true"),
        ({"logprobs": True, "top_logprobs": 30}, 422, "top_logprobs"),
        ({"stop": ["a"] * 30}, 400, "up to 16 texts"),
        ({"stop": [""]}, 400, "1 to 200 characters"),
        ({"tools": [{"type": "function"}]}, 422, "tools"),
        ({"frequency_penalty": 0.5}, 422, "frequency_penalty"),
        ({"response_format": {"type": "xml"}}, 422, "response_format"),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "a", "schema": {"type": "x"}},
                }
            },
            400,
            "json_schema",
        ),
        ({"model": "gpt-4"}, 404, "there are: tiny, same"),
        ({"stream": "perhaps"}, 422, "stream"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_bad_chats(server: Running, change: dict[str, Any], status: int, said: str, stream: bool) -> None:
    """One line that names the field and what is allowed; a stream is refused before it begins."""
    body = {"messages": [{"role": "user", "content": QUESTION}], "stream": stream} | change
    # Not httpx's own encoder: it cannot spell half a character.
    response = server.client.post(
        CHAT, content=json.dumps(body), headers={"Content-Type": "application/json"}
    )
    assert said in refusal(response, status)["message"]


@pytest.mark.parametrize(
    ("url", "status", "said"),
    [
        (as_url(b"no picture"), 415, "this is text"),
        (as_url(b"%PDF-1.7"), 415, "a PDF"),
        (as_url(b"<svg/>", "image/svg+xml"), 415, "SVG"),
        (as_url(b""), 400, "empty"),
        (as_url(b"\x89PNG\r\n\x1a\n" + bytes(40)), 400, "truncated or damaged"),
        (as_url(bomb()), 413, "60,000 x 60,000 pixels is too large; allowed: 1,000,000"),
        ("data:image/png;base64,@", 400, "not valid base64"),
        ("data:image/png,plain", 400, "base64,DATA"),
        ("data:text/html;base64,PGI+", 400, "data:image/TYPE"),
        ("", 400, "allowed: data:image/TYPE"),
    ],
)
def test_bad_pictures(server: Running, url: str, status: int, said: str) -> None:
    """Both ways to ask refuse them alike: what is no picture 415, too many pixels 413, damaged 400."""
    chat = server.chat(asked(url))
    caption = server.client.post("/v1/caption", json={"image": url})
    for response in (chat, caption):
        assert said in refusal(response, status)["message"]


def test_too_many_pictures(server: Running, data_url: str) -> None:
    """The limit is this server's, and counts over all messages."""
    content = [*asked(data_url), *asked(data_url)[1:] * 3]
    assert "4 images" in refusal(server.chat(content), 400)["message"]
    assert server.chat(content[:-1], max_tokens=1).status_code == 200


def test_media_types(server: Running, png: bytes) -> None:
    """Only JSON for a chat, JSON or a form for the others; nothing compressed; an upload must be a picture."""
    for path, given in (
        (CHAT, "text/plain"),
        (CHAT, "multipart/form-data"),
        ("/v1/ask", "image/png"),
        ("/v1/ask", ""),
    ):
        error = refusal(server.client.post(path, content=b"{}", headers={"Content-Type": given}), 415)
        assert "allowed: application/json" in error["message"]
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    squeezed = gzip.compress(b" " * 10**6)
    assert (
        "uncompressed" in refusal(server.client.post(CHAT, content=squeezed, headers=headers), 415)["message"]
    )
    upload = {"image": ("a.pdf", b"%PDF-1.7", "application/pdf")}
    assert refusal(server.client.post("/v1/caption", files=upload), 415)["code"] == "unsupported_image"
    upload = {"image": ("a.png", b"%PDF-1.7", "image/png")}
    assert "a PDF" in refusal(server.client.post("/v1/caption", files=upload), 415)["message"]


def test_bad_forms(server: Running, png: bytes) -> None:
    """A form without its picture, with two, with an unknown or doubled field, or cut in the middle."""

    def post(files: Any = None, **fields: Any) -> httpx.Response:
        return server.client.post("/v1/ask", files=files, data={"question": QUESTION} | fields)

    upload = ("a.png", png, "image/png")
    assert "no picture" in refusal(post({"other": (None, "x")}), 422)["message"]
    assert "put it in 'image'" in refusal(post({"picture": upload}), 422)["message"]
    refusal(post([("image", upload), ("image", upload)]), 400)
    assert "colour" in refusal(post({"image": upload}, colour="red"), 422)["message"]
    assert "'question' stands twice" in refusal(post({"image": upload}, question=["a", "b"]), 422)["message"]
    assert "max_tokens" in refusal(post({"image": upload}, max_tokens="many"), 422)["message"]
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    for body in (
        b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n\x89PNG',
        b"garbage",
        b"",
    ):
        response = server.client.post("/v1/ask", content=body, headers=headers)
        assert 400 <= response.status_code < 500
        refusal(response, response.status_code)


@pytest.fixture(scope="module")
def guarded(vlm: VisionLM) -> Iterator[Running]:
    """A server with a key and small limits."""
    settings = Settings(api_key="the-right-key", max_body_bytes=10_000, body_timeout=0.5)
    with running({"tiny": vlm}, settings) as one:
        yield one


KEY = {"Authorization": "Bearer the-right-key"}


@pytest.mark.parametrize(
    "given", [None, "", "Bearer", "Bearer the-wrong-key", "Basic the-right-key", "the-right-key"]
)
def test_a_wrong_key_is_refused_before_the_body(guarded: Running, given: str | None) -> None:
    """401 for everything but health and the API's description, however large the body that would follow."""
    headers = {} if given is None else {"Authorization": given}
    for method, path in (("POST", CHAT), ("POST", "/v1/caption"), ("GET", "/v1/models"), ("GET", "/metrics")):
        response = guarded.client.request(method, path, headers=headers)
        assert refusal(response, 401)["code"] == "invalid_api_key"
        assert response.headers["www-authenticate"] == "Bearer"
    refusal(guarded.client.post(CHAT, content=bytes(10**6), headers=headers), 401)
    for path in ("/healthz", "/readyz", "/openapi.json"):
        assert guarded.client.get(path, headers=headers).status_code == 200


def test_the_right_key_is_let_in(guarded: Running) -> None:
    """In any case of the scheme."""
    for scheme in ("Bearer", "bearer"):
        response = guarded.client.get("/v1/models", headers={"Authorization": f"{scheme} the-right-key"})
        assert response.status_code == 200


def test_bodies_are_cut_off(guarded: Running) -> None:
    """413 by the declared length, and without one as soon as too much has come; 408 for a body that never ends."""
    headers = KEY | {"Content-Type": "application/json"}
    assert (
        "10,000 bytes"
        in refusal(guarded.client.post(CHAT, content=bytes(10_001), headers=headers), 413)["message"]
    )

    def pieces() -> Iterator[bytes]:
        for _ in range(20):
            yield bytes(1_000)

    assert (
        refusal(guarded.client.post(CHAT, content=pieces(), headers=headers), 413)["code"] == "body_too_large"
    )

    def drip() -> Iterator[bytes]:
        for _ in range(100):
            time.sleep(0.05)
            yield b" "

    for path in (CHAT, "/v1/ask"):
        assert (
            refusal(guarded.client.post(path, content=drip(), headers=headers), 408)["code"] == "body_timeout"
        )


def test_without_a_key_other_pages_cannot_keep_the_model_busy(server: Running, png: bytes) -> None:
    """A form needs no permission of a browser's; a page of this machine may send one, and so may whoever is no browser."""
    form = {"question": "What is this?"}

    def send(origin: str) -> httpx.Response:
        return server.client.post(
            "/v1/ask", files={"image": ("a.png", png)}, data=form, headers={"Origin": origin}
        )

    for origin in (
        "https://evil.test",
        "null",
        "http://localhost.evil.test",
        "http://8.8.8.8",
        "http://[bad",
    ):
        assert refusal(send(origin), 403)["code"] == "origin_not_allowed"
    for origin in ("http://localhost:3000", "http://127.0.0.1:8000", "http://[::1]:5173"):
        assert send(origin).status_code == 200


def test_without_a_key_other_hosts_names_are_refused(server: Running) -> None:
    """A page whose name leads to this machine (DNS rebinding) cannot use a server that asks for no key."""
    for host in ("evil.test", "localhost.evil.test", "127.0.0.1.evil.test:8000", "evil.test:80"):
        assert (
            refusal(server.client.get("/v1/models", headers={"Host": host}), 403)["code"]
            == "host_not_allowed"
        )
    for host in ("localhost", "localhost:8000", "127.0.0.1", "[::1]:8000", "LOCALHOST:1"):
        assert server.client.get("/v1/models", headers={"Host": host}).status_code == 200


PICTURE = "data:image/png;base64,AAAA"  # no picture, but that is seen later


@pytest.mark.parametrize(
    "body",
    [
        {f"a{number}": 0 for number in range(100_000)},
        {"question": "?", "image": PICTURE, "choices": [0] * 100_000},
        {"question": "?", "image": PICTURE, "stop": [0] * 100_000},
    ],
    ids=["names", "choices", "stop"],
)
def test_a_body_of_a_hundred_thousand_mistakes_has_few(server: Running, body: dict[str, Any]) -> None:
    """The first is enough: all of them would take gigabytes, and everybody's time."""
    message = refusal(server.client.post("/v1/ask", json=body), 422)["message"]
    more = re.search(r"and (\d+) more", message)
    assert more is None or int(more[1]) < 10, message
