"""The service under load: many clients that stream answers about pictures, against one client alone.

    python benchmarks/serve_load.py --clients 64 --seconds 60 --out load.json

Starts `vision-lm serve` on a free port of this machine (or uses --url), warms it up, lets one client ask for a
quarter of the time and then all of them. Prints and writes, for each: answers, failures, tokens a second, and the
50th and 99th percentile of the time to the first token.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import random
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
from PIL import Image

QUESTIONS = (
    "Describe the image.",
    "Describe the image in detail.",
    "What is in the picture?",
    "Is there a cat?",
)
PICTURES = 32  # different ones, each asked about again and again


@dataclass
class Load:
    """What some clients got in some seconds."""

    clients: int
    seconds: float = 0.0
    answers: int = 0
    tokens: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    first_token: list[float] = field(default_factory=list)  # seconds

    def summary(self) -> dict[str, Any]:
        p50, p99 = np.percentile(self.first_token, [50, 99]) if self.first_token else (None, None)
        return {
            "clients": self.clients,
            "seconds": round(self.seconds, 2),
            "answers": self.answers,
            "failures": self.failures,
            "tokens_per_second": round(self.tokens / self.seconds, 1),
            "first_token_p50_ms": p50 and round(1e3 * p50, 1),
            "first_token_p99_ms": p99 and round(1e3 * p99, 1),
        }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--max-tokens", type=int, default=48)
    parser.add_argument("--model", default="mini", help="embedded name, folder or hub id")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--url", help="of a server that runs already, instead of one of our own")
    parser.add_argument("--out", type=Path, help="write the figures to this file, too")
    options = parser.parse_args()
    with served(options) as url:
        asyncio.run(load(url, 1, 5.0, options.max_tokens))  # warm
        one = asyncio.run(load(url, 1, options.seconds / 4, options.max_tokens))
        many = asyncio.run(load(url, options.clients, options.seconds, options.max_tokens))
        memory = resident_bytes(url)
    figures: dict[str, Any] = {"one": one.summary(), "many": many.summary(), "resident_bytes": memory}
    figures["times_one_client"] = round(
        figures["many"]["tokens_per_second"] / figures["one"]["tokens_per_second"], 2
    )
    text = json.dumps(figures, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")
    return 1 if one.failures or many.failures else 0


async def load(url: str, clients: int, seconds: float, max_tokens: int) -> Load:
    """So many clients ask one question after the other, streamed, until the time is over."""
    result = Load(clients)
    urls = pictures()
    async with AsyncExitStack() as stack:
        # Each has a connection of its own, as clients on other machines would have.
        each = [await stack.enter_async_context(aiohttp.ClientSession(url)) for _ in range(clients)]
        start = time.perf_counter()
        end = start + seconds
        await asyncio.gather(
            *(
                ask_until(client, end, urls, max_tokens, random.Random(number), result)
                for number, client in enumerate(each)
            )
        )
        result.seconds = time.perf_counter() - start
    return result


async def ask_until(
    client: aiohttp.ClientSession,
    end: float,
    urls: list[str],
    max_tokens: int,
    chance: random.Random,
    result: Load,
) -> None:
    while time.perf_counter() < end:
        content = [
            {"type": "text", "text": chance.choice(QUESTIONS)},
            {"type": "image_url", "image_url": {"url": chance.choice(urls)}},
        ]
        body = {
            "messages": [{"role": "user", "content": content}],
            "max_tokens": max_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        try:
            await ask(client, body, result)
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            cause = str(error)[:80] or type(error).__name__
            result.failures[cause] = result.failures.get(cause, 0) + 1


async def ask(client: aiohttp.ClientSession, body: dict[str, Any], result: Load) -> None:
    """One streamed answer. Raises ValueError for one that is no success."""
    start = time.perf_counter()
    first: float | None = None
    async with client.post("/v1/chat/completions", json=body) as response:
        if response.status != 200:
            raise ValueError(f"status {response.status}")
        usage = None
        async for line in response.content:
            if not line.startswith(b"data: {"):
                continue
            chunk = json.loads(line.removeprefix(b"data: "))
            if "error" in chunk:
                raise ValueError(f"in the stream: {chunk['error']['code']}")
            if first is None and chunk["choices"] and chunk["choices"][0]["delta"].get("content"):
                first = time.perf_counter() - start
            usage = chunk["usage"] or usage
    if usage is None:
        raise ValueError("the stream ended early")
    result.answers += 1
    result.tokens += usage["completion_tokens"]
    if first is not None:
        result.first_token.append(first)


def pictures() -> list[str]:
    """Data URLs of coloured noise, the same every time."""
    noise = np.random.default_rng(0)
    urls = []
    for _ in range(PICTURES):
        blocks = Image.fromarray(noise.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        buffer = io.BytesIO()
        blocks.resize((320, 240), Image.Resampling.BICUBIC).save(buffer, "JPEG")
        urls.append(f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}")
    return urls


@contextmanager
def served(options: argparse.Namespace) -> Iterator[str]:
    """The URL of a server, our own unless one is given."""
    if options.url:
        yield options.url
        return
    command = [sys.executable, "-m", "vision_lm", "serve", "--port", "0", "--device", options.device]
    command += ["--model", f"model={options.model}"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if not line.startswith("{"):
                raise SystemExit(line)
            if (event := json.loads(line))["event"] == "listening":
                break
        else:
            raise SystemExit("the server did not start")
        # Its log must be read on, or it would wait for us.
        threading.Thread(target=process.stderr.read, daemon=True).start()
        yield f"http://127.0.0.1:{event['port']}"
    finally:
        process.terminate()
        process.wait(60)


def resident_bytes(url: str) -> dict[str, float]:
    """Of the server's processes, after the load."""
    with urllib.request.urlopen(f"{url}/metrics") as response:
        lines = response.read().decode().splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if "resident_memory_bytes" in line and line[0] != "#")
    return {name: float(value) for name, value in pairs}


if __name__ == "__main__":
    sys.exit(main())
