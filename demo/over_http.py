"""The models of a running `vision-lm serve`, over OpenAI's protocol and our plain endpoints."""

from __future__ import annotations

import asyncio
import base64
import json
import mimetypes
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from demo.backend import Reply, Settings, Writing
from vision_lm.answer import Answer
from vision_lm.errors import RequestError, VisionLMError
from vision_lm.explain import Explanation
from vision_lm.images import open_image, read_image
from vision_lm.prompts import CaptionLength, Turn

TIMEOUT = httpx.Timeout(10, read=150)  # seconds; the service itself gives an answer up after 120
LOOK_EVERY = 0.2  # seconds between two empty replies


class Server:
    """One service. What it refuses is raised with its own message."""

    def __init__(self, address: str, key: str | None = None) -> None:
        """`address`: http(s)://host:port. Raises VisionLMError if no service answers there, or asks for another key."""
        self.address = address.rstrip("/").removesuffix("/v1")
        self._trusted = httpx.create_ssl_context()  # whose certificates; to read them takes a moment
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        try:
            self._client = httpx.Client(
                base_url=self.address, headers=headers, timeout=TIMEOUT, verify=self._trusted
            )
            complete = self._client.base_url.scheme in ("http", "https") and self._client.base_url.host
        except (httpx.InvalidURL, ValueError):
            complete = False
        if not complete:
            raise VisionLMError(f"--server {address[:200]!r} is no address; give http://HOST:PORT")
        self.models = self._names()

    @property
    def place(self) -> str:
        return f"at {self.address}"

    def caption(self, picture: Path, length: CaptionLength, settings: Settings) -> Writing:
        """In one piece, since the service streams chats alone; until then empty replies, at which it can be stopped."""
        fields = {"length": length} | {name: str(value) for name, value in _options(settings).items()}
        if settings.checked:
            fields["checked"] = "true"
        with self._refusals():
            upload = {"image": (picture.name, read_image(picture), _type(picture))}
            response = yield from self._posted("/v1/caption", data=fields, files=upload)
            _check(response)
            given = response.json()
        yield Reply(
            given["text"],
            given["confidence"],
            given["finish_reason"],
            given.get("unanswerable", False),
            tuple(given.get("unconfirmed", ())),
        )

    def answer(self, turns: Sequence[Turn], settings: Settings) -> Writing:
        body = {"messages": _messages(turns), "stream": True} | _options(settings)
        text = ""
        with self._refusals(), self._client.stream("POST", "/v1/chat/completions", json=body) as response:
            if response.status_code != 200:
                response.read()
                _check(response)
            for event in _events(response):
                if "error" in event:
                    raise RequestError(event["error"]["message"])
                for choice in event["choices"]:
                    if choice["finish_reason"]:
                        sure, reason = choice.get("confidence"), choice["finish_reason"]
                        yield Reply(text, sure, reason, choice.get("unanswerable", False))
                    elif piece := choice["delta"].get("content"):
                        text += piece
                        yield Reply(text)

    def explain(self, turns: Sequence[Turn], picture: int, answer: str, settings: Settings) -> Explanation:
        asked = {"messages": _messages(turns), "picture": picture}
        shown = [path for turn in turns for path in turn.images][picture]
        return self._explanation(asked, answer, shown, settings)

    def explain_caption(
        self, picture: Path, length: CaptionLength, caption: str, settings: Settings
    ) -> Explanation:
        asked = {"messages": _messages([Turn("", (picture,))]), "caption": length}
        return self._explanation(asked, caption, picture, settings)

    def _explanation(
        self, asked: dict[str, Any], answer: str, picture: Path, settings: Settings
    ) -> Explanation:
        """The service's numbers, with the picture as it lies here."""
        body = asked | {"model": settings.model, "answer": answer}
        with self._refusals():
            response = self._client.post("/v1/explain", json=body)
            _check(response)
            given = response.json()
            left, top, right, bottom = given["box"]
            said = Answer(given["answer"], given["confidence"], "stop", (), ())
            windows = np.array(given["windows"], dtype=np.float32)
        return Explanation(said, open_image(picture), windows, (left, top, right, bottom))

    def _posted(self, path: str, **body: Any) -> Generator[Reply, None, httpx.Response]:
        """The response, with empty replies while it is waited for. Closed at one of them, it hangs up: the service stops."""

        async def post() -> httpx.Response:
            headers = self._client.headers
            async with httpx.AsyncClient(headers=headers, timeout=TIMEOUT, verify=self._trusted) as client:
                return await client.post(self.address + path, **body)

        with asyncio.Runner() as runner:  # it cancels what still runs at its end
            posting = runner.get_loop().create_task(post())
            while not posting.done():
                runner.run(asyncio.wait({posting}, timeout=LOOK_EVERY))
                if not posting.done():
                    yield Reply("")
            return posting.result()

    def _names(self) -> list[str]:
        with self._refusals():
            response = self._client.get("/v1/models")
            if response.status_code == 401:
                raise VisionLMError(
                    f"{self.address} asks for a key, and the one given is missing or wrong; "
                    "set VISION_LM_API_KEY or --api-key-file"
                )
            _check(response)
            names = [str(one["id"]) for one in response.json()["data"]]
        if not names:
            raise VisionLMError(f"{self.address} has no models; start `vision-lm serve` there")
        return names

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        """What goes wrong between here and there, in one line."""
        try:
            yield
        except httpx.HTTPError as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise VisionLMError(
                f"{self.address} does not answer ({reason}); start `vision-lm serve` there, or correct --server"
            ) from error
        except (ValueError, KeyError, TypeError) as error:  # no JSON, or another one
            raise VisionLMError(
                f"{self.address} is no vision-lm service: it answers something else; correct --server"
            ) from error


def _check(response: httpx.Response) -> None:
    """Raise the message of a refusal."""
    if response.status_code != 200:
        raise RequestError(str(response.json()["error"]["message"]))


def _events(response: httpx.Response) -> Iterator[dict[str, Any]]:
    for line in response.iter_lines():
        data = line.removeprefix("data: ")
        if data and data != "[DONE]":
            yield json.loads(data)


def _messages(turns: Sequence[Turn]) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    for turn in turns:
        content: list[dict[str, Any]] = [{"type": "text", "text": turn.question}]
        content += [{"type": "image_url", "image_url": {"url": _data_url(path)}} for path in turn.images]
        messages.append({"role": "user", "content": content})
        if turn.answer is not None:
            messages.append({"role": "assistant", "content": turn.answer})
    return messages


def _data_url(picture: Path) -> str:
    """The file as it is: what the service sees is what the Python API would."""
    return f"data:{_type(picture)};base64,{base64.b64encode(read_image(picture)).decode()}"


def _type(picture: Path) -> str:
    """By the name; the service looks at the content itself."""
    guessed = mimetypes.guess_type(picture.name)[0] or ""
    return guessed if guessed.startswith("image/") else "image/png"


def _options(settings: Settings) -> dict[str, Any]:
    options: dict[str, Any] = {"model": settings.model}
    if settings.temperature:
        options["temperature"] = settings.temperature
    if settings.max_tokens is not None:
        options["max_tokens"] = settings.max_tokens
    return options
