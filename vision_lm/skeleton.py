"""A model's skeleton: its modules without weights, and the name and shape of every tensor they need."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from projector.module import Projector
from vision_lm.config import Config, TextConfig, VisionConfig
from vision_lm.encoder import ImageEncoder, feature_width
from vision_lm.errors import CheckpointError
from vision_lm.model_files import one_line

# Tensors of whole numbers: for each of the tower's classes the number of one.
CLASSES = {"projector.nouns"}


def expected_tensors(config: Config) -> dict[str, torch.Size]:
    """Name and shape of every tensor that a checkpoint of this config holds."""
    encoder, projector = build_on_meta(config)
    shapes = {f"encoder.{name}": tensor.shape for name, tensor in encoder.state_dict().items()}
    shapes |= {f"projector.{name}": tensor.shape for name, tensor in projector.state_dict().items()}
    return shapes | {f"phi.{name}": shape for name, shape in phi_shapes(config.text).items()}


def build_on_meta(config: Config) -> tuple[ImageEncoder, Projector]:
    """Image encoder and projector without memory or values: `load_state_dict(..., assign=True)` fills them."""
    encoder = build_encoder_on_meta(config.vision)
    with torch.device("meta"):
        return encoder, Projector(**dataclasses.asdict(config.projector))


def build_encoder_on_meta(config: VisionConfig) -> ImageEncoder:
    """The image encoder without memory or values. Raises CheckpointError for settings that name no tower."""
    name = str(config.tower.get("timm_model_name") or "")
    if config.tower.get("timm_model_pretrained") or ":" in name:  # timm would fetch these from the network
        raise CheckpointError(f"vision.tower: {name!r} would fetch its own weights; a checkpoint brings them")
    try:
        with torch.device("meta"):
            return ImageEncoder(config)
    except Exception as error:  # open_clip and timm raise nearly anything for settings they do not know
        raise CheckpointError(f"vision: this tower cannot be built ({one_line(error)})") from error


def patch_layout(config: VisionConfig) -> tuple[int, int]:
    """Patches N of a picture and their width Dv, found by running the tower's shapes. Raises CheckpointError."""
    encoder = build_encoder_on_meta(config)
    try:
        return feature_width(encoder)
    except Exception as error:  # a hidden state that is not there, a picture size that does not fit
        raise CheckpointError(
            f"vision: this tower cannot run with these settings ({one_line(error)})"
        ) from error


def phi_shapes(config: TextConfig) -> dict[str, torch.Size]:
    """Names and shapes of PhiForCausalLM's state dict, without the seconds that transformers takes to import."""
    hidden, inner = config.hidden_size, config.intermediate_size
    queries, keys = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    linears = {
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.dense": (hidden, queries),
        "mlp.fc1": (inner, hidden),
        "mlp.fc2": (hidden, inner),
        "input_layernorm": (hidden,),
    }
    weights: dict[str, tuple[int, ...]] = {
        f"model.layers.{layer}.{name}": shape
        for layer in range(config.num_hidden_layers)
        for name, shape in linears.items()
    }
    weights |= {"model.final_layernorm": (hidden,), "lm_head": (config.vocab_size, hidden)}
    shapes = {"model.embed_tokens.weight": torch.Size((config.vocab_size, hidden))}
    for name, shape in weights.items():
        shapes |= {f"{name}.weight": torch.Size(shape), f"{name}.bias": torch.Size(shape[:1])}
    return shapes


def check_tensors(tensors: Mapping[str, Tensor], expected: Mapping[str, torch.Size], where: Path) -> None:
    """Raise a CheckpointError naming the tensors that are missing, unexpected, or of a wrong shape or type."""
    wrong_shape = [
        f"{name} is {list(tensor.shape)}, expected {list(expected[name])}"
        for name, tensor in tensors.items()
        if name in expected and tensor.shape != expected[name]
    ]
    # The integers that belong in a model are the scalar count of a batch norm, and these.
    integers = [
        f"{name} ({t.dtype})"
        for name, t in tensors.items()
        if t.ndim and not t.is_floating_point() and name not in CLASSES
    ]
    astray = [
        f"{name} ({tensors[name].dtype})" for name in CLASSES & tensors.keys() if _astray(tensors[name])
    ]
    problems = {
        "missing tensors": expected.keys() - tensors.keys(),
        "unexpected tensors": tensors.keys() - expected.keys(),
        "wrong shapes": wrong_shape,
        "not floating point": integers,
        "not all the number of a class": astray,
    }
    found = [f"{problem}: {_names(names)}" for problem, names in problems.items() if names]
    if found:
        raise CheckpointError(f"{where}: {'; '.join(found)}; the tensors do not fit the config")


def _astray(classes: Tensor) -> bool:
    """Whether any value is no place in the tensor itself; of one without values, by its type alone."""
    if classes.dtype != torch.int64:
        return True
    return not classes.is_meta and bool(((classes < 0) | (classes >= classes.numel())).any())


def _names(names: Iterable[str], shown: int = 3) -> str:
    ordered = sorted(names)
    more = f" and {len(ordered) - shown} more" if len(ordered) > shown else ""
    return ", ".join(ordered[:shown]) + more
