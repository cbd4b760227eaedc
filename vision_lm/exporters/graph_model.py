"""An export of graphs, run with onnxruntime or openvino, numpy, tokenizers and pillow: no torch, no transformers.

Greedy and in batches; short rows are padded on the left. docs/checkpoints.md has the same loop without this project.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from tokenizers import Tokenizer

from vision_lm.config import Config
from vision_lm.errors import ExportError, RequestError
from vision_lm.preprocess import fit, normalise
from vision_lm.prompts import PromptBuilder, Turn

EYES, EMBEDDING, LANGUAGE = "vision_encoder", "embed_tokens", "decoder_model_merged"
SETTINGS = "vision_lm.json"  # the checkpoint's own config: how pictures and prompts are made, to the letter

Run = Callable[[dict[str, np.ndarray]], list[np.ndarray]]  # inputs by name -> outputs in their order


@dataclass
class Said:
    """A greedy answer, while it grows and when it is whole."""

    prompt: list[int]  # ids, a picture's tokens among them
    logits: np.ndarray  # (V,), after the prompt
    tokens: list[int] = field(default_factory=list)  # without the one that ends the answer
    text: str = ""
    finish_reason: Literal["stop", "length"] | None = None  # None while it grows


class GraphModel:
    """The three graphs and how they are used."""

    def __init__(self, folder: Path) -> None:
        """Raises ExportError for a folder that is no export of graphs, and for a runtime that is not installed."""
        if not (folder / SETTINGS).is_file():
            raise ExportError(f"{folder}: no {SETTINGS} there; give a folder of `vision-lm export --to onnx`")
        kind, self.runtime, load = _runtime(folder)
        self.config = Config.load(folder / SETTINGS)
        self.eyes, self.embedding, self.language = (
            load(folder / kind / name) for name in (EYES, EMBEDDING, LANGUAGE)
        )
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def pixels(self, image: Image.Image) -> np.ndarray:
        """An RGB picture of any size -> (3, S, S), float32."""
        return normalise(fit(image, self.config.vision), self.config.vision)

    def answer(
        self, images: Sequence[Image.Image], questions: Sequence[str], max_tokens: int = 64
    ) -> list[Said]:
        """One answer for each picture and its question, all at once."""
        pixels = np.stack([self.pixels(image) for image in images])  # (B, 3, S, S)
        pictures = self.eyes({"pixel_values": pixels})[0]  # (B, M, Dt)
        prompts = PromptBuilder(self._tokenizer, self.config.prompt, pictures.shape[1])
        rows = [prompts.build([Turn(question, (None,))]).ids for question in questions]
        longest = max(map(len, rows))
        room = self.config.text.max_position_embeddings - longest
        if room < 1:
            raise RequestError(f"the prompt has {longest} tokens, allowed: {room + longest - 1}; shorten it")
        padding = self.config.prompt.eos_token_id
        ids = np.array([[padding] * (longest - len(row)) + row for row in rows])  # (B, T)
        mask = np.array([[0] * (longest - len(row)) + [1] * len(row) for row in rows])  # (B, T)
        positions = (mask.cumsum(axis=1) - 1).clip(min=0)  # (B, T)
        inputs = self.embedding({"input_ids": ids})[0].copy()  # (B, T, Dt)
        inputs[ids == self.config.prompt.image_token_id] = pictures.reshape(-1, pictures.shape[-1])
        cache = self._empty_cache(len(rows))
        answers: list[Said] = []
        while not answers or any(one.finish_reason is None for one in answers):
            logits, *present = self.language(
                {"inputs_embeds": inputs, "attention_mask": mask, "position_ids": positions, **cache}
            )
            cache = dict(zip(cache, present, strict=True))
            last = logits[:, -1]  # (B, V)
            answers = answers or [Said(*pair) for pair in zip(rows, last, strict=True)]
            tokens = last.argmax(axis=-1)  # (B,)
            for one, token in zip(answers, tokens.tolist(), strict=True):
                if one.finish_reason is None:
                    self._say(one, token, prompts.decode, min(max_tokens, room))
            inputs = self.embedding({"input_ids": tokens[:, None]})[0]  # (B, 1, Dt)
            mask = np.concatenate([mask, np.ones_like(mask[:, :1])], axis=1)
            positions = positions[:, -1:] + 1
        return answers

    def _empty_cache(self, batch: int) -> dict[str, np.ndarray]:
        text = self.config.text
        empty = np.zeros((batch, text.num_key_value_heads, 0, text.head_dim), np.float32)
        layers = range(text.num_hidden_layers)
        return {f"past_key_values.{layer}.{part}": empty for layer in layers for part in ("key", "value")}

    def _say(self, said: Said, token: int, decode: Callable[[list[int]], str], max_tokens: int) -> None:
        """One more token, which may be the end, or complete a text that is."""
        if token == self.config.prompt.eos_token_id:
            said.finish_reason = "stop"
            return
        said.tokens.append(token)
        text = decode(said.tokens)
        stops = [text.find(stop) for stop in self.config.prompt.stop if stop in text]
        if stops:
            while len(decode(said.tokens[:-1])) >= min(stops) and said.tokens:
                said.tokens.pop()
            text = text[: min(stops)]
            said.finish_reason = "stop"
        elif len(said.tokens) >= max_tokens:
            said.finish_reason = "length"
        said.text = text.rstrip("\ufffd").strip()


def openvino() -> Any:
    """The library, without the package by which it tells its maker of every import and conversion.

    Raises ModuleNotFoundError.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # as if it were not installed
    return import_module("openvino")


def _runtime(folder: Path) -> tuple[str, str, Callable[[Path], Run]]:
    """The subfolder of the graphs, their runtime's name and version, and what loads one of them by its stem."""
    name = "openvino" if (folder / "openvino").is_dir() else "onnxruntime"
    try:
        library: Any = openvino() if name == "openvino" else import_module(name)
    except ModuleNotFoundError:
        raise ExportError(f"{folder}: {name} is not installed; pip install 'vision-lm[export]'") from None

    def onnx_graph(stem: Path) -> Run:
        session = library.InferenceSession(stem.with_suffix(".onnx"), providers=["CPUExecutionProvider"])
        return lambda inputs: list(session.run(None, inputs))

    def openvino_graph(stem: Path) -> Run:
        # Left to itself it computes in bfloat16 where a processor can.
        model = library.compile_model(stem.with_suffix(".xml"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        return lambda inputs: list(model(inputs, share_inputs=False, share_outputs=False).values())

    version = library.__version__.partition("-")[0]
    if name == "openvino":
        return name, f"openvino {version}", openvino_graph
    return "onnx", f"onnxruntime {version}", onnx_graph
