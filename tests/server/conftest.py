"""A real server on a free port, with tiny models that say nonsense."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.conftest import VIT, random_checkpoint, text_config
from tests.patience import until
from vision_lm.checkpoint import Checkpoint
from vision_lm.model import VisionLM
from vision_lm.server.app import create_app
from vision_lm.server.listen import take_port
from vision_lm.server.serve import DrainingServer, connections
from vision_lm.server.settings import Settings

QUESTION = "What colour is the cube?"
LONG = {"max_tokens": 150, "temperature": 2.0, "seed": 1}  # of the endless model: all 150


@dataclass
class Running:
    """A server that runs, and a client of it."""

    server: DrainingServer
    app: Any
    url: str
    client: httpx.Client

    def chat(self, content: Any, **more: Any) -> httpx.Response:
        messages = [{"role": "user", "content": content}]
        return self.client.post("/v1/chat/completions", json={"messages": messages} | more)


@contextmanager
def running(models: Mapping[str, VisionLM], settings: Settings | None = None) -> Iterator[Running]:
    """Serve these models while the block lasts."""
    settings = settings or Settings()
    app = create_app(models, settings)
    listener = take_port("127.0.0.1", 0)
    config = connections(app, settings)
    server = DrainingServer(config, app.state.service.admission, settings.drain_timeout)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    until(lambda: server.started)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    try:
        with httpx.Client(base_url=url, timeout=120) as client:
            yield Running(server, app, url, client)
    finally:
        server.should_exit = True
        thread.join(30)
        listener.close()
        assert not thread.is_alive()


@pytest.fixture(scope="session")
def server(vlm: VisionLM) -> Iterator[Running]:
    """Two names, `tiny` and `same`, for one model; the limits of images are low enough to reach."""
    with running({"tiny": vlm, "same": vlm}, Settings(max_images=3, max_pixels=1_000_000)) as one:
        yield one


@pytest.fixture(scope="session")
def endless_checkpoint() -> Checkpoint:
    """Random weights with room for a long answer, of which none ever ends by itself."""
    checkpoint = random_checkpoint(VIT, text_config(max_position_embeddings=4096))
    bias = checkpoint.tensors["phi.lm_head.bias"].clone()
    bias[checkpoint.config.prompt.eos_token_id] = -1e4
    return dataclasses.replace(checkpoint, tensors=checkpoint.tensors | {"phi.lm_head.bias": bias})


@pytest.fixture
def slow(endless_checkpoint: Checkpoint) -> VisionLM:
    """The endless model, at most a hundred tokens a second."""
    vlm = VisionLM(endless_checkpoint, device="cpu")
    decode = vlm.engine.decoder.decode

    def slowly(*arguments: Any) -> Any:
        time.sleep(0.01)
        return decode(*arguments)

    vlm.engine.decoder.decode = slowly  # type: ignore[method-assign]
    return vlm


@pytest.fixture(scope="session")
def png(pictures: list[Image.Image]) -> bytes:
    buffer = io.BytesIO()
    pictures[0].save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="session")
def data_url(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def asked(url: str | None, question: str = QUESTION) -> list[dict[str, Any]]:
    """A message's content: a question, about a picture if there is one."""
    picture = [] if url is None else [{"type": "image_url", "image_url": {"url": url}}]
    return [{"type": "text", "text": question}, *picture]


def refusal(response: httpx.Response, status: int) -> dict[str, Any]:
    """The error of a response, which must have this status and OpenAI's shape."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    (key, error), *rest = response.json().items()
    assert (key, rest) == ("error", [])
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["message"].isprintable() and 0 < len(error["message"]) <= 500
    assert error["type"] and error["code"]
    return error


def events(response: httpx.Response) -> list[Any]:
    """The data of a stream's events; "[DONE]" as it is."""
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]
