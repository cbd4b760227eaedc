"""Hundreds of broken bodies and pictures, the same every time: refused, never a failure, and the server lives."""

from __future__ import annotations

import base64
import io
import json
import os
import random
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.server.conftest import QUESTION, Running, asked, refusal

CHAT, EXPLAIN = "/v1/chat/completions", "/v1/explain"
JSON = {"Content-Type": "application/json"}
KINDS = ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"]
ODD = [
    None,
    True,
    -1,
    1e308,
    10**40,
    "",
    "x" * 500,
    "\ud800",
    "\0",
    [],
    [[]],
    {},
    {"a": {"b": []}},
    [None],
    float("nan"),
]


def valid(data_url: str) -> dict[str, Any]:
    content = asked(data_url)
    return {"model": "tiny", "messages": [{"role": "user", "content": content}], "max_tokens": 1}


def send_broken_body(server: Running, data_url: str, number: int, chance: random.Random) -> httpx.Response:
    """A request truncated, with bytes flipped, or with something odd in it, by turns."""
    path = chance.choice([CHAT, CHAT, "/v1/ask", "/v1/caption", EXPLAIN])
    body = valid(data_url)
    if path == EXPLAIN:  # the cheapest
        body |= {"answer": "yes", "grid": 2, "picture": 0}
        del body["max_tokens"]
    else:
        body |= {"temperature": 0.5, "stop": ["a"], "response_format": {"type": "text"}}
    if number % 3 == 0:
        text = json.dumps(body).encode()
        text = text[: chance.randrange(len(text))]  # never whole
    elif number % 3 == 1:
        raw = bytearray(json.dumps(body).encode())
        for _ in range(chance.randint(1, 30)):
            raw[chance.randrange(len(raw))] = chance.randrange(256)
        text = bytes(raw)
    else:
        spoil(body, chance)
        text = json.dumps(body).encode()
    response = server.client.post(path, content=text, headers=JSON)
    if response.status_code != 200:
        assert 400 <= response.status_code < 500, text[:200]
        refusal(response, response.status_code)
    if number % 3 == 0:
        assert response.status_code in (400, 422)
    return response


def spoil(value: Any, chance: random.Random) -> None:
    """Put something odd somewhere into a JSON value."""
    while True:
        keys = list(value) if isinstance(value, dict) else range(len(value))
        key = chance.choice(list(keys))
        if isinstance(value[key], (dict, list)) and value[key] and chance.random() < 0.7:
            value = value[key]
            continue
        value[key] = chance.choice(ODD)
        return


def send_broken_picture(
    server: Running, kind: str, whole: bytes, number: int, chance: random.Random
) -> httpx.Response:
    """A picture truncated or with bytes flipped, as an upload or as a data URL, by turns."""
    raw = bytearray(whole)
    if number % 2:
        del raw[chance.randrange(len(raw)) :]
    for _ in range(chance.randint(1, 20)):
        if raw:
            raw[chance.randrange(min(len(raw), 200))] = chance.randrange(256)
    if number % 3:
        files = {"image": ("a", bytes(raw), f"image/{kind.lower()}")}
        response = server.client.post("/v1/caption", files=files, data={"max_tokens": "1"})
    else:
        url = f"data:image/{kind.lower()};base64,{base64.b64encode(raw).decode()}"
        response = server.chat(asked(url), max_tokens=1)
    assert response.status_code in (200, 400, 413, 415), response.text
    if response.status_code != 200:
        refusal(response, response.status_code)
    return response


def saved(picture: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    return buffer.getvalue()


def test_broken_bodies(server: Running, data_url: str) -> None:
    """4xx, or 200 where it is still a request."""
    chance = random.Random(0)
    responses = [send_broken_body(server, data_url, number, chance) for number in range(300)]
    assert sum(response.status_code != 200 for response in responses) > 250
    assert server.chat(QUESTION, max_tokens=1).status_code == 200


@pytest.mark.parametrize("kind", KINDS)
def test_broken_pictures(server: Running, kind: str, pictures: list[Image.Image]) -> None:
    """4xx; what still decodes is answered."""
    chance, whole = random.Random(kind), saved(pictures[0], kind)
    responses = [send_broken_picture(server, kind, whole, number, chance) for number in range(30)]
    assert sum(response.status_code != 200 for response in responses) > 5
    assert server.chat(QUESTION, max_tokens=1).status_code == 200


@pytest.mark.slow
def test_ten_thousand_of_them(server: Running, data_url: str, pictures: list[Image.Image]) -> None:
    """The server is alive after 10,000, and its memory is what it was after the first 3,000."""
    chance = random.Random(1)
    files = {kind: saved(pictures[0], kind) for kind in KINDS}
    before = 0
    for number in range(10_000):
        if number == 3_000:
            before = resident()
        if number % 2:
            send_broken_body(server, data_url, number // 2, chance)
        else:
            kind = chance.choice(KINDS)
            send_broken_picture(server, kind, files[kind], number // 2, chance)
    assert server.chat(QUESTION, max_tokens=1).status_code == 200
    assert resident() < before + (32 << 20)


def resident() -> int:
    """Bytes of this process in memory, the server's threads among them."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
