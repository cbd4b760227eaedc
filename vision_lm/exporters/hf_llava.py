"""transformers' LlavaForConditionalGeneration with its processor, in the layout that vLLM and SGLang read too.

Facts from transformers 5.23 (models/llava, models/clip, models/siglip) and vLLM (models/llava.py, phi.py): on disk
`vision_tower.vision_model.*`, `multi_modal_projector.linear_{1,2}.*` and `language_model.*`, the latter as PhiForCausalLM's.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from vision_lm.checkpoint import Checkpoint
from vision_lm.config import Config, TextConfig, VisionConfig
from vision_lm.errors import ExportError
from vision_lm.exporters.chat_template import chat_template, tokenizer_with_image
from vision_lm.exporters.folder import new_folder
from vision_lm.exporters.linears import fold_head_bias, read_mlp
from vision_lm.exporters.tower import Tower, read_tower
from vision_lm.prompts import PLACEHOLDER

_RESAMPLE = {"bilinear": 2, "bicubic": 3}  # PIL's numbers


def write_hf_llava(checkpoint: Checkpoint, out: Path, *, keep_head_bias: bool = False) -> list[str]:
    """Write the folder `out` and return what there is to say about it, a line each.

    transformers' Llava has no `lm_head.bias`. It is folded into the weights, so that nothing is lost; `keep_head_bias`
    leaves every tensor of the language model as it is, and transformers to drop the bias.
    Raises ExportError for what a Llava cannot carry.
    """
    config = checkpoint.config
    tower = read_tower(config.vision, checkpoint.tensors)
    strategy = _strategy(tower, config.vision.skip_patches)
    phi = {n.removeprefix("phi."): t for n, t in checkpoint.tensors.items() if n.startswith("phi.")}
    biased = bool(phi["lm_head.bias"].any())
    parts = {
        "vision_tower.vision_model": tower.tensors,
        "multi_modal_projector": read_mlp(config.projector, checkpoint.tensors),
        "language_model": phi if keep_head_bias else fold_head_bias(phi),
    }
    tensors = {f"{prefix}.{name}": tensor for prefix, part in parts.items() for name, tensor in part.items()}
    end = (
        checkpoint.tokenizer.id_to_token(config.prompt.eos_token_id) or ""
    )  # a checkpoint's is always a token
    files = {
        "config.json": _model(config, tower, strategy),
        "generation_config.json": _ends(config),
        "preprocessor_config.json": _pictures(config.vision),
        "processor_config.json": _processor(tower, strategy),
        "tokenizer_config.json": _tokenizer(config, end),
    }
    with new_folder(out, tensors) as folder:
        for name, content in files.items():
            (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        (folder / "tokenizer.json").write_text(
            tokenizer_with_image(checkpoint.tokenizer, config.prompt.image_token_id), encoding="utf-8"
        )
        (folder / "chat_template.jinja").write_text(chat_template(config.prompt, end), encoding="utf-8")
        _save(tensors, folder / "model.safetensors")
    return _notes(tower, biased, keep_head_bias)


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    from safetensors.torch import save_file

    save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, path, {"format": "pt"})


def _notes(tower: Tower, biased: bool, kept: bool) -> list[str]:
    notes = []
    if not biased:
        notes.append("lm_head.bias is zero: transformers drops it, and nothing is lost")
    elif kept:
        notes.append("lm_head.bias is on disk: vLLM reads it, transformers DROPS it and answers otherwise")
    else:
        notes.append("lm_head.bias is folded into lm_head.weight and final_layernorm; on disk it is zero")
    if len(tower.read) > 1:
        notes.append(f"{len(tower.read)} layers are read: vLLM's Llava has a projector for one")
    return notes


def _model(config: Config, tower: Tower, strategy: str) -> dict[str, Any]:
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "dtype": config.dtype,
        "torch_dtype": config.dtype,  # its name before transformers 5
        "image_token_index": config.prompt.image_token_id,
        "image_seq_length": tower.patches - config.vision.skip_patches,
        "multimodal_projector_bias": True,
        "projector_hidden_act": "gelu_pytorch_tanh" if config.projector.tanh_gelu else "gelu",
        "tie_word_embeddings": False,
        "vision_feature_layer": tower.read[0] if len(tower.read) == 1 else list(tower.read),
        "vision_feature_select_strategy": strategy,
        "vision_config": _vision(tower),
        "text_config": _text(config.text) | _ends(config),
    }


def _strategy(tower: Tower, skipped: int) -> str:
    """Llava's word for leaving the first of the tower's tokens out: CLIP's class token, or a patch; or for keeping all.

    Raises ExportError for more patches than that.
    """
    if skipped > (tower.kind == "siglip"):
        raise ExportError(f"{skipped} patches that are left out, which Llava's does not do")
    return "default" if tower.kind == "clip" or skipped else "full"


def _vision(tower: Tower) -> dict[str, Any]:
    head = {"vision_use_head": False} if tower.kind == "siglip" else {}
    return {
        "model_type": f"{tower.kind}_vision_model",
        "hidden_size": tower.width,
        "intermediate_size": tower.inner,
        "num_hidden_layers": tower.layers,
        "num_attention_heads": tower.heads,
        "image_size": tower.image_size,
        "patch_size": tower.patch_size,
        "hidden_act": tower.activation,
        "layer_norm_eps": tower.eps,
        **head,
    }


def _text(text: TextConfig) -> dict[str, Any]:
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


def _ends(config: Config) -> dict[str, Any]:
    end = config.prompt.eos_token_id
    return {"bos_token_id": None, "eos_token_id": end, "pad_token_id": end}


def _pictures(vision: VisionConfig) -> dict[str, Any]:
    """An image processor that brings pictures to size as ours does: stretched, cut or padded."""
    size = vision.image_size
    square = {"height": size, "width": size}
    padded, cut = vision.resize in ("pad", "pad_first"), vision.resize in ("crop", "crop_floor")
    whole = tuple(int(255 * level) / 255 for level in vision.mean)  # what it makes of the mean
    if padded and vision.fill not in (None, vision.mean, whole):
        raise ExportError(
            f"pictures padded with {list(vision.fill or ())}; Llava's processor pads with the mean"
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


def _processor(tower: Tower, strategy: str) -> dict[str, Any]:
    return {
        "processor_class": "LlavaProcessor",
        "image_token": PLACEHOLDER,
        "patch_size": tower.patch_size,
        "vision_feature_select_strategy": strategy,
        # One less is counted with "default": of SigLIP's patches that is the one left out.
        "num_additional_image_tokens": 1 if tower.kind == "clip" else 0,
    }


def _tokenizer(config: Config, end: str) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "processor_class": "LlavaProcessor",
        "eos_token": end,
        "pad_token": end,
        "padding_side": "left",
        "model_max_length": config.text.max_position_embeddings,
        "clean_up_tokenization_spaces": False,
    }
