"""The engines that peers.py compares, each brought to the same form: prompts in, greedy tokens and two times out."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from gpt_fast import StaticPhi, decode
from llama_cpp_peer import LlamaCpp
from torch import Tensor

from vision_lm.config import TextConfig
from vision_lm.engine import Engine, Mode, Prompt, Sampling, TorchDecoder, make_decoder
from vision_lm.phi import phi_config

# Prompts (B, T) on the CPU and a number of tokens -> when every prompt had its first token, when its last, by
# time.perf_counter(), and the tokens (B, number).
Peer: TypeAlias = Callable[[Tensor, int], tuple[float, float, Tensor]]


def peers(
    config: TextConfig,
    weights: Mapping[str, Tensor],
    device: torch.device,
    dtype: torch.dtype,
    batch: int,
    length: int,
    quantize: Mode,
) -> dict[str, Callable[[], Peer]]:
    """How to build each engine. `length`: tokens of a prompt and its answer together."""

    def ours(mode: Mode) -> Peer:
        return Ours(make_decoder(config, weights, device, dtype, mode), batch * length)

    builders: dict[str, Callable[[], Peer]] = {"ours": lambda: ours(None)}
    if quantize is not None:
        builders[f"ours, {quantize}"] = lambda: ours(quantize)
    builders["transformers, eager"] = lambda: Transformers(hugging_face(config, weights))
    builders["transformers, static + compile"] = lambda: Transformers(
        hugging_face(config, weights), static_cache(device)
    )
    if device.type == "cuda":
        builders["gpt-fast style"] = lambda: GptFast(config, weights, batch, length)
    else:
        builders["llama.cpp (xllamacpp)"] = lambda: LlamaCpp(config, weights, batch, length)
        builders["OpenVINO (optimum-intel)"] = lambda: open_vino(config, weights)
    return builders


class Ours:
    """The engine, as the service runs it, without pictures."""

    def __init__(self, decoder: TorchDecoder, tokens: int) -> None:
        self._engine = Engine(decoder, no_pictures, image_token_id=-1, cache_tokens=2 * tokens + 1024)

    def __call__(self, prompts: Tensor, tokens: int) -> tuple[float, float, Tensor]:
        tickets = [self._engine.submit(Prompt(ids), Sampling(max_tokens=tokens)) for ids in prompts.tolist()]
        answers = [iter(ticket) for ticket in tickets]
        starts = [next(answer).id for answer in answers]
        first = time.perf_counter()
        ids = [
            [start, *(token.id for token in answer)] for start, answer in zip(starts, answers, strict=True)
        ]
        return first, time.perf_counter(), torch.tensor(ids)


def no_pictures(pictures: Any) -> list[Tensor]:
    return []


class Clock:
    """A streamer of transformers' `generate`: when each step's tokens were handed out."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: Tensor) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


class Transformers:
    """transformers' `generate`, or what has the same method."""

    def __init__(self, model: Any, options: Mapping[str, Any] | None = None) -> None:
        self._model, self._options = model, options or {}

    @torch.inference_mode()
    def __call__(self, prompts: Tensor, tokens: int) -> tuple[float, float, Tensor]:
        clock, ids = Clock(), prompts.to(self._model.device)
        found = self._model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            pad_token_id=0,
            streamer=clock,
            **self._options,
        )
        answers = found[:, prompts.shape[1] :].cpu()
        return clock.times[1], time.perf_counter(), answers  # the first that is put is the prompt


def hugging_face(config: TextConfig, weights: Mapping[str, Tensor]) -> Any:
    """transformers' Phi around the weights themselves: no copy, and no time spent on initial values."""
    from transformers import PhiForCausalLM

    like = weights["lm_head.weight"]
    with torch.device("meta"):
        model = PhiForCausalLM(phi_config(config))
    model.load_state_dict(dict(weights), assign=True)
    # The rotary table is no weight, and on "meta" it was never computed.
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config).to(like.device)
    model.generation_config.eos_token_id = None
    return model.eval().requires_grad_(False)


def static_cache(device: torch.device) -> dict[str, Any]:
    """Options of `generate` for its fastest documented way: a static cache, and a compiled step."""
    from transformers import CompileConfig

    compiled = CompileConfig(mode="reduce-overhead" if device.type == "cuda" else "default")
    # Without it a CPU's step is not compiled.
    compiled._compile_all_devices = True  # type: ignore[assignment]
    return {"cache_implementation": "static", "compile_config": compiled}


class GptFast:
    """The decoder of gpt_fast.py, its step compiled into a CUDA graph."""

    def __init__(self, config: TextConfig, weights: Mapping[str, Tensor], batch: int, length: int) -> None:
        self._phi = StaticPhi.load(config, weights, batch, length)
        self._step: Any = torch.compile(self._phi, mode="reduce-overhead", fullgraph=True)

    def __call__(self, prompts: Tensor, tokens: int) -> tuple[float, float, Tensor]:
        steps = decode(self._phi, self._step, prompts.to(self._phi.lm_head.weight.device), tokens)
        answers = [next(steps).cpu()]  # which waits for the device
        first = time.perf_counter()
        answers += [step.cpu() for step in steps]
        return first, time.perf_counter(), torch.cat(answers, dim=1)


def open_vino(config: TextConfig, weights: Mapping[str, Tensor]) -> Peer:
    """Intel's runtime, from an export of transformers' model; ImportError where optimum-intel is not installed."""
    from optimum.intel import OVModelForCausalLM  # type: ignore[import-not-found]

    with tempfile.TemporaryDirectory() as folder:
        hugging_face(config, weights).save_pretrained(folder)
        return Transformers(OVModelForCausalLM.from_pretrained(folder, export=True, load_in_8bit=False))
