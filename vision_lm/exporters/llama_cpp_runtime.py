"""A gguf export in llama.cpp itself: its server, which xllamacpp has as a library, in this process and on the CPU.

It is asked over a socket in a private folder, as no other way in tells the tokens of a prompt and of an answer; it
listens on no port.
"""

from __future__ import annotations

import base64
import io
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import torch
from PIL import Image

from vision_lm.errors import ExportError
from vision_lm.exporters.gguf_files import EYES, LANGUAGE
from vision_lm.exporters.verify import TOKENS, Reply, Sample

CANDIDATES = 100  # for an answer's first token, whose log-probabilities are asked for
ROOM = 256  # tokens of a question and its answer, beside a picture's
_SECONDS = 600.0  # for one answer


class LlamaCpp:
    """The server, with a folder's files loaded; see `llama_cpp`."""

    def __init__(self, folder: Path, http: httpx.Client, image_token_id: int) -> None:
        self.name = f"llama.cpp in xllamacpp {version('xllamacpp')}"
        self.folder = folder
        self.http = http
        self.image_token_id = image_token_id
        self.marker: str = self._said(http.get("/props"))["media_marker"]

    def reply(self, sample: Sample) -> Reply:
        """What llama.cpp says to the message, of which the file's chat template makes a prompt. Raises ExportError."""
        content: Any = sample.question
        pictures = []
        if sample.image is not None:
            pictures = [_png(sample.image)]
            url = {"url": f"data:image/png;base64,{pictures[0]}"}
            content = [{"type": "image_url", "image_url": url}, {"type": "text", "text": sample.question}]
        text = self._ask("/apply-template", messages=[{"role": "user", "content": content}])["prompt"]
        said = self._ask(
            "/completion",
            prompt={"prompt_string": text, "multimodal_data": pictures} if pictures else text,
            n_predict=TOKENS,
            temperature=0,
            n_probs=CANDIDATES,
            return_tokens=True,
            cache_prompt=False,
        )
        before, _, after = text.partition(self.marker)
        ids, rest = self._ids(before), self._ids(after)
        seen = said["tokens_evaluated"] - len(ids) - len(rest)  # of a picture's tokens it tells the number
        tokens, stopped = said["tokens"], said["stop_type"] == "eos"
        told = said.get("completion_probabilities")  # a token that ends within a character is not among them
        likely = None
        if told and told[0]["id"] == tokens[0]:
            likely = {one["id"]: one["logprob"] for one in told[0]["top_logprobs"]}
        prompt = [*ids, *[self.image_token_id] * seen, *rest]
        return Reply(prompt, None, tokens[:-1] if stopped else tokens, stopped, likely)

    def pixels(self, image: Image.Image) -> None:
        """It does not give them."""

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._ask("/tokenize", content=text, parse_special=True)["tokens"]
        return ids

    def _ask(self, path: str, **request: Any) -> dict[str, Any]:
        return self._said(self.http.post(path, json=request))

    def _said(self, response: httpx.Response) -> dict[str, Any]:
        said: dict[str, Any] = response.json()
        if response.is_error:
            raise ExportError(f"{self.folder}: llama.cpp: {said['error']['message']}")
        return said


@contextmanager
def llama_cpp(folder: Path, image_token_id: int, tokens_per_image: int) -> Iterator[LlamaCpp]:
    """llama.cpp with the files of `folder`, keys and values in float32. Raises ExportError for what it does not load."""
    with tempfile.TemporaryDirectory() as private:
        socket = f"{private}/llama.sock"
        server = _server(folder, socket, tokens_per_image + ROOM)
        transport = httpx.HTTPTransport(uds=socket)
        try:  # the connection is closed first: an open one keeps the server from stopping
            with httpx.Client(
                transport=transport, base_url="http://llama.cpp", timeout=_SECONDS, trust_env=False
            ) as http:
                yield LlamaCpp(folder, http, image_token_id)
        finally:
            del server  # stops it, and waits for its threads


def _server(folder: Path, socket: str, context: int) -> Any:
    library: Any = import_module("xllamacpp")
    params = library.CommonParams()
    params.model.path = str(folder / LANGUAGE)
    if (folder / EYES).exists():
        params.mmproj.path = str(folder / EYES)
    params.hostnames = [socket]
    params.verbosity = 1  # errors
    params.n_ctx = context
    params.n_parallel = params.n_threads_http = 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = min(2, torch.get_num_threads())
    params.n_gpu_layers = params.cache_ram_mib = 0
    params.cache_type_k = params.cache_type_v = library.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = library.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.mmproj_use_gpu = params.fit_params = params.warmup = params.ui = params.endpoint_slots = False
    with _signals_kept():
        try:
            return library.Server(params)
        except RuntimeError:
            raise ExportError(f"{folder}: llama.cpp does not load it; its reason is above") from None


@contextmanager
def _signals_kept() -> Iterator[None]:
    """The server takes Ctrl-C and termination for itself; the main thread gives them back to whoever had them."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in kept.items():
                if handler is not None:
                    signal.signal(number, handler)


def _png(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()
