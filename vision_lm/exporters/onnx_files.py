"""Three ONNX graphs, or OpenVINO's of them, with all that a runtime without torch needs beside them.

File names, names of inputs and outputs, and the settings are those of the image-text-to-text models that transformers.js
reads (version 4.3, src/models: `vision_encoder`, `embed_tokens`, `decoder_model_merged` in the folder `onnx`).
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.export import Dim

from vision_lm.checkpoint import Checkpoint
from vision_lm.config import Config
from vision_lm.errors import ExportError
from vision_lm.exporters.chat_template import chat_template, tokenizer_with_image
from vision_lm.exporters.folder import new_folder
from vision_lm.exporters.graph_model import EMBEDDING, EYES, LANGUAGE, SETTINGS, openvino
from vision_lm.exporters.graphs import Embedding, Eyes, Language
from vision_lm.exporters.llava_settings import (
    end_settings,
    phi_settings,
    picture_settings,
    tokenizer_settings,
)
from vision_lm.exporters.verify import Report
from vision_lm.prompts import PLACEHOLDER

OPSET = 20  # the first with GELU as one operator
SINGLE_FILE = 1 << 30  # bytes of weights that one .onnx holds at most: protobuf ends at 2 GiB
_NEEDED = {"onnx": ("onnx", "onnxscript"), "openvino": ("onnx", "onnxscript", "openvino")}


@dataclass(frozen=True)
class Graph:
    """A module with an example of its inputs, and the names of what goes in and out."""

    module: nn.Module
    inputs: dict[str, Any]  # by the parameters of its `forward`
    axes: dict[str, Any]  # the same, of each tensor the dimensions that are free
    names: tuple[list[str], list[str]]  # of every tensor in and out


def write_graphs(
    checkpoint: Checkpoint,
    out: Path,
    target: Literal["onnx", "openvino"],
    *,
    single_file: int = SINGLE_FILE,
) -> list[str]:
    """Write the folder `out` and return what there is to say about it, a line each.

    Graphs with more than `single_file` bytes of weights keep them in a file of their own beside the .onnx.
    Raises ExportError.
    """
    for library in _NEEDED[target]:
        if find_spec(library) is None:
            raise ExportError(f"{out}: not written, {library} is missing; pip install 'vision-lm[export]'")
    config = checkpoint.config
    if config.vision.crops is not None:
        raise ExportError("parts of a picture beside the whole, which the graphs do not see")
    copies = ("", "again.")[: 1 + (target == "openvino")]  # which is made of the other
    whole = {
        copy + name: torch.empty_like(tensor, dtype=torch.float32, device="meta")
        for copy in copies
        for name, tensor in checkpoint.tensors.items()
    }
    notes = [] if config.dtype == "float32" else [f"weights are float32; the checkpoint's are {config.dtype}"]
    with new_folder(out, whole) as folder:
        (folder / "onnx").mkdir()
        apart = [
            path.name
            for name, make in ((EYES, _eyes), (EMBEDDING, _embedding), (LANGUAGE, _language))
            for path in _write(make(checkpoint), folder / "onnx" / f"{name}.onnx", single_file)
        ]
        _write_settings(checkpoint, folder, apart, notes)
        if target == "openvino":
            _convert(folder)
    return notes


def check_files(out: Path, notes: Sequence[str]) -> Report:
    """What can be said of an export to ONNX without onnxruntime: that its files are graphs."""
    import onnx

    paths = sorted((out / "onnx").glob("*.onnx"))
    for path in paths:
        onnx.checker.check_model(path)  # raises for one that is wrong
    return Report(
        target="onnx",
        verified_with=f"onnx {onnx.__version__}: {len(paths)} graphs are well formed",
        notes=(
            *notes,
            "answers were NOT compared: onnxruntime is not installed; pip install 'vision-lm[export]'",
        ),
        passed=True,
    )


def _eyes(checkpoint: Checkpoint) -> Graph:
    size = checkpoint.config.vision.image_size
    return Graph(
        Eyes(checkpoint),
        {"pixel_values": torch.zeros(2, 3, size, size)},
        {"pixel_values": {0: Dim("batch_size")}},
        (["pixel_values"], ["image_features"]),
    )


def _embedding(checkpoint: Checkpoint) -> Graph:
    return Graph(
        Embedding(checkpoint),
        {"input_ids": torch.zeros(2, 3, dtype=torch.long)},
        {"input_ids": {0: Dim("batch_size"), 1: Dim("sequence_length")}},
        (["input_ids"], ["inputs_embeds"]),
    )


def _language(checkpoint: Checkpoint) -> Graph:
    config = checkpoint.config.text
    batch, past, count = 2, 4, 3
    shape = (batch, config.num_key_value_heads, past, config.head_dim)
    # Each a tensor of its own: the exporter takes inputs that are one object for one input.
    kept = [torch.zeros(shape) for _ in range(2 * config.num_hidden_layers)]
    rows, tokens, before = Dim("batch_size"), Dim("sequence_length"), Dim("past_sequence_length")
    layers = [f"{number}.{part}" for number in range(config.num_hidden_layers) for part in ("key", "value")]
    inputs = {
        "inputs_embeds": torch.zeros(batch, count, config.hidden_size),
        "attention_mask": torch.ones(batch, past + count, dtype=torch.long),
        "position_ids": torch.arange(past, past + count).repeat(batch, 1),
    }
    return Graph(
        Language(checkpoint),
        {**inputs, "past_key_values": kept},
        {
            "inputs_embeds": {0: rows, 1: tokens},
            "attention_mask": {0: rows, 1: Dim.DYNAMIC},  # a sum of two, which no name can say
            "position_ids": {0: rows, 1: tokens},
            "past_key_values": [{0: rows, 2: before}] * len(kept),
        },
        (
            [*inputs, *(f"past_key_values.{name}" for name in layers)],
            ["logits", *(f"present.{name}" for name in layers)],
        ),
    )


def _write(graph: Graph, path: Path, single_file: int) -> list[Path]:
    """Write one graph, and return the file of its weights if they have one of their own."""
    import onnx_ir

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that axes which share a name are one
        program = torch.onnx.export(
            graph.module.eval(),
            kwargs=graph.inputs,
            dynamic_shapes=graph.axes,
            input_names=graph.names[0],
            output_names=graph.names[1],
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx gave no program")
    model = program.model
    for node in model.graph.all_nodes():
        node.metadata_props.clear()  # stack traces: paths of the machine that exported
    for value in model.graph.inputs:
        if value.name == "attention_mask" and value.shape is not None:
            value.shape[1] = "total_sequence_length"
    weights = sum(t.const_value.nbytes for t in model.graph.initializers.values() if t.const_value)
    data = path.with_name(f"{path.name}_data") if weights > single_file else None
    onnx_ir.save(model, path, external_data=data and data.name)
    return [data] if data else []


def _write_settings(checkpoint: Checkpoint, folder: Path, apart: list[str], notes: list[str]) -> None:
    """Everything but the graphs. `apart`: names of the files that only hold weights."""
    config = checkpoint.config
    end = checkpoint.tokenizer.id_to_token(config.prompt.eos_token_id) or ""
    config.save(folder / SETTINGS)
    files: dict[str, Any] = {
        "config.json": _model(checkpoint, apart),
        "generation_config.json": {
            **end_settings(config),
            "do_sample": False,
            "max_new_tokens": 64,
            **({"stop_strings": list(config.prompt.stop)} if config.prompt.stop else {}),
        },
        "processor_config.json": _processor(checkpoint),
        "tokenizer_config.json": tokenizer_settings(config, end),
    }
    try:
        processor = {"processor_class": "LlavaProcessor"}  # transformers.js looks for it here
        files["preprocessor_config.json"] = picture_settings(config.vision) | processor
    except ExportError as error:
        notes.append(f"no preprocessor_config.json, for {error}; {SETTINGS} says how it is done")
    try:
        files["tokenizer_config.json"]["chat_template"] = chat_template(config.prompt, end)
    except ExportError as error:
        notes.append(f"no chat template, for {error}; {SETTINGS} says how it is done")
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    (folder / "tokenizer.json").write_text(
        tokenizer_with_image(checkpoint.tokenizer, config.prompt.image_token_id), encoding="utf-8"
    )


def _image_tokens(checkpoint: Checkpoint) -> int:
    return checkpoint.patch_layout[0] + checkpoint.config.pooled_tokens


def _model(checkpoint: Checkpoint, apart: list[str]) -> dict[str, Any]:
    config: Config = checkpoint.config
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "image_token_index": config.prompt.image_token_id,
        "image_seq_length": _image_tokens(checkpoint),
        "tie_word_embeddings": False,
        "vision_config": {"image_size": config.vision.image_size},  # all that a graph leaves open
        "text_config": phi_settings(config.text) | end_settings(config) | {"head_dim": config.text.head_dim},
        "transformers.js_config": {
            "dtype": "fp32",
            "use_external_data_format": {name.removesuffix("_data"): 1 for name in apart},
        },
    }


def _processor(checkpoint: Checkpoint) -> dict[str, Any]:
    """How many tokens a picture has, in the one way that a Llava's processor counts: (S // patch)^2 and so many more."""
    size, tokens = checkpoint.config.vision.image_size, _image_tokens(checkpoint)
    patch = size // math.isqrt(checkpoint.patch_layout[0])
    return {
        "processor_class": "LlavaProcessor",
        "image_token": PLACEHOLDER,
        "patch_size": patch,
        "vision_feature_select_strategy": "full",
        "num_additional_image_tokens": tokens - (size // patch) ** 2,
    }


def _convert(folder: Path) -> None:
    """OpenVINO's graphs in place of the ONNX files that they are made of."""
    library = openvino()
    (folder / "openvino").mkdir()
    for path in sorted((folder / "onnx").glob("*.onnx")):
        model = library.convert_model(path)
        library.save_model(model, folder / "openvino" / f"{path.stem}.xml", compress_to_fp16=False)
        del model  # it maps the file
    for path in (folder / "onnx").iterdir():
        path.unlink()
    (folder / "onnx").rmdir()
