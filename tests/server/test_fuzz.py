"""Hundreds of broken bodies and pictures, the same every time: refused, never a failure, and the server lives."""

from __future__ import annotations

import base64
import io
import json
import random
from typing import Any

import pytest
from PIL import Image

from tests.server.conftest import QUESTION, Running, asked, refusal

CHAT = "/v1/chat/completions"
JSON = {"Content-Type": "application/json"}
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


def test_broken_bodies(server: Running, data_url: str) -> None:
    """Truncated, with bytes flipped, with values of wrong types anywhere: 4xx, or 200 where it is still a request."""
    chance = random.Random(0)
    refused = 0
    for number in range(300):
        body = valid(data_url) | {"temperature": 0.5, "stop": ["a"], "response_format": {"type": "text"}}
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
        path = chance.choice([CHAT, CHAT, "/v1/ask", "/v1/caption"])
        response = server.client.post(path, content=text, headers=JSON)
        if response.status_code != 200:
            assert 400 <= response.status_code < 500, text[:200]
            refusal(response, response.status_code)
            refused += 1
        if number % 3 == 0:
            assert response.status_code in (400, 422)
    assert refused > 250
    assert server.chat(QUESTION, max_tokens=1).status_code == 200


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


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"])
def test_broken_pictures(server: Running, kind: str, pictures: list[Image.Image]) -> None:
    """Truncated and with bytes flipped, as an upload and as a data URL; what still decodes is answered."""
    chance = random.Random(kind)
    buffer = io.BytesIO()
    pictures[0].save(buffer, kind)
    refused = 0
    for number in range(30):
        raw = bytearray(buffer.getvalue())
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
            refused += 1
    assert refused > 5
    assert server.chat(QUESTION, max_tokens=1).status_code == 200
