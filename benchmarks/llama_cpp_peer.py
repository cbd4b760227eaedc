"""llama.cpp as a peer: the language model as this project exports it to gguf, in llama.cpp's own server, in this process.

With its defaults, but for as many threads as torch has, and a slot for every prompt of the batch.
"""

from __future__ import annotations

import dataclasses
import shutil
import signal
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from vision_lm.bench.shapes import shape_config
from vision_lm.checkpoint import Checkpoint
from vision_lm.config import PromptConfig, TextConfig
from vision_lm.exporters.gguf_files import LANGUAGE, write_gguf

SECONDS = 600.0  # for a batch
END = 0  # the token that ends a text there: no answer of peers.py comes to it


class LlamaCpp:
    """Prompts in, greedy tokens and two times out, as `peer_engines.Peer`. ImportError where xllamacpp is not installed."""

    def __init__(self, config: TextConfig, weights: Mapping[str, Tensor], batch: int, length: int) -> None:
        """`length`: tokens of a prompt and its answer together."""
        import xllamacpp  # type: ignore[import-untyped]

        params = xllamacpp.CommonParams()
        params.n_parallel = batch
        params.n_ctx = batch * (-(-(length + 1) // 256) * 256)  # slots have whole 256s
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = torch.get_num_threads()
        params.n_threads_http = batch
        params.verbosity = 1  # errors
        params.n_gpu_layers = params.cache_ram_mib = 0
        params.fit_params = params.ui = params.endpoint_slots = False
        self._folder = tempfile.TemporaryDirectory()
        out, socket = Path(self._folder.name) / "gguf", f"{self._folder.name}/llama.sock"
        write_gguf(language_checkpoint(config, weights), out, language_only=True)
        params.model.path = str(out / LANGUAGE)
        params.hostnames = [socket]
        kept = signal.getsignal(signal.SIGINT)
        self._server = xllamacpp.Server(params)
        signal.signal(signal.SIGINT, kept)  # the server takes Ctrl-C for itself
        shutil.rmtree(out)  # it has mapped the file
        self._askers = ThreadPoolExecutor(batch)
        self._http = httpx.Client(
            transport=httpx.HTTPTransport(uds=socket),
            base_url="http://llama.cpp",
            headers={"Connection": "close"},  # an open one keeps the server from stopping
            timeout=SECONDS,
            trust_env=False,
        )

    def __call__(self, prompts: Tensor, tokens: int) -> tuple[float, float, Tensor]:
        said = list(self._askers.map(lambda ids: self._asked(ids, tokens), prompts.tolist()))
        firsts, lasts, answers = zip(*said, strict=True)
        return max(firsts), max(lasts), torch.tensor(answers)

    def _asked(self, ids: Sequence[int], tokens: int) -> tuple[float, float, list[int]]:
        """One prompt -> when it had its first token, when its last, and the tokens."""
        request = {
            "prompt": ids,
            "n_predict": tokens,
            "temperature": 0,
            "return_tokens": True,
            "cache_prompt": False,
        }
        said: dict[str, Any] = self._http.post("/completion", json=request).raise_for_status().json()
        last = time.perf_counter()
        # Its own clock says how long the others took after the first: to hear of every token would cost it time.
        return last - said["timings"]["predicted_ms"] / 1e3, last, said["tokens"]


def language_checkpoint(config: TextConfig, weights: Mapping[str, Tensor]) -> Checkpoint:
    """As much of a checkpoint as the export of a language model reads; its tokenizer knows bytes alone."""
    like = shape_config("mini")
    prompt = PromptConfig(image_token_id=config.vocab_size - 1, eos_token_id=END)
    tensors = {f"phi.{name}": tensor.cpu() for name, tensor in weights.items()}
    return Checkpoint(dataclasses.replace(like, text=config, prompt=prompt), tensors, byte_tokenizer())


def byte_tokenizer() -> Tokenizer:
    """GPT-2's kind, with a single merge."""
    names = ["<|endoftext|>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "ab"]
    vocabulary = {name: number for number, name in enumerate(names)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("a", "b")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(names[:1])
    return tokenizer
