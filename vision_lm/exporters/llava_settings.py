"""What of a Llava's settings every layout that transformers' family reads has in common: JSON, by transformers' names."""

from __future__ import annotations

from typing import Any

from vision_lm.config import Config, TextConfig, VisionConfig
from vision_lm.errors import ExportError

_RESAMPLE = {"bilinear": 2, "bicubic": 3}  # PIL's numbers


def phi_settings(text: TextConfig) -> dict[str, Any]:
    """A PhiConfig. transformers 5 reads `rope_parameters`; version 4 and others the two keys beside it."""
    rotary = {"rope_theta": text.rope_theta, "partial_rotary_factor": text.partial_rotary_factor}
    return {
        "architectures": ["PhiForCausalLM"],
        "model_type": "phi",
        "vocab_size": text.vocab_size,
        "hidden_size": text.hidden_size,
        "intermediate_size": text.intermediate_size,
        "num_hidden_layers": text.num_hidden_layers,
        "num_attention_heads": text.num_attention_heads,
        "num_key_value_heads": text.num_key_value_heads,
        "max_position_embeddings": text.max_position_embeddings,
        "layer_norm_eps": text.layer_norm_eps,
        "hidden_act": "gelu_new",
        "tie_word_embeddings": False,
        "rope_parameters": {"rope_type": "default", **rotary},
        **rotary,
    }


def end_settings(config: Config) -> dict[str, Any]:
    end = config.prompt.eos_token_id
    return {"bos_token_id": None, "eos_token_id": end, "pad_token_id": end}


def picture_settings(vision: VisionConfig) -> dict[str, Any]:
    """An image processor that brings pictures to size as ours does: stretched, cut or padded."""
    size = vision.image_size
    square = {"height": size, "width": size}
    padded, cut = vision.resize in ("pad", "pad_first"), vision.resize in ("crop", "crop_floor")
    whole = tuple(int(255 * level) / 255 for level in vision.mean)  # what it makes of the mean
    if padded and vision.fill not in (None, vision.mean, whole):
        raise ExportError(
            f"pictures padded with {list(vision.fill or ())}; Llava's processor pads with the mean"
        )
    if vision.interpolation not in _RESAMPLE:
        raise ExportError(
            f"pictures resized by {vision.interpolation!r}; Llava's processor knows {', '.join(_RESAMPLE)}"
        )
    return {
        "image_processor_type": "LlavaImageProcessor" if padded else "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": size} if cut else square,
        "resample": _RESAMPLE[vision.interpolation],
        "do_center_crop": cut,
        "crop_size": square,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(vision.mean),
        "image_std": list(vision.std),
        **({"do_pad": True} if padded else {}),
    }


def tokenizer_settings(config: Config, end: str) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "processor_class": "LlavaProcessor",
        "eos_token": end,
        "pad_token": end,
        "padding_side": "left",
        "model_max_length": config.text.max_position_embeddings,
        "clean_up_tokenization_spaces": False,
    }
