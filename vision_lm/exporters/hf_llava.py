"""transformers' LlavaForConditionalGeneration with its processor, in the layout that vLLM reads too.

Facts from transformers 5.23 (models/llava, models/clip, models/siglip) and vLLM 0.31 (models/llava.py, phi.py): on disk
`vision_tower.vision_model.*`, `multi_modal_projector.linear_{1,2}.*` and `language_model.*`, the latter as PhiForCausalLM's.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from vision_lm.checkpoint import Checkpoint
from vision_lm.config import Config
from vision_lm.errors import ExportError
from vision_lm.exporters.chat_template import chat_template, tokenizer_with_image
from vision_lm.exporters.folder import new_folder
from vision_lm.exporters.linears import fold_head_bias, read_mlp
from vision_lm.exporters.llava_settings import (
    end_settings,
    phi_settings,
    picture_settings,
    tokenizer_settings,
)
from vision_lm.exporters.tower import Tower, read_tower
from vision_lm.prompts import PLACEHOLDER


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
        "generation_config.json": end_settings(config),
        "preprocessor_config.json": picture_settings(config.vision),
        "processor_config.json": _processor(tower, strategy),
        "tokenizer_config.json": tokenizer_settings(config, end),
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
        "text_config": phi_settings(config.text)
        | end_settings(config)
        | {"n_inner": config.text.intermediate_size},  # vLLM's Phi reads this name, and takes 4 Dt without it
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


def _processor(tower: Tower, strategy: str) -> dict[str, Any]:
    return {
        "processor_class": "LlavaProcessor",
        "image_token": PLACEHOLDER,
        "patch_size": tower.patch_size,
        "vision_feature_select_strategy": strategy,
        # One less is counted with "default": of SigLIP's patches that is the one left out.
        "num_additional_image_tokens": 1 if tower.kind == "clip" else 0,
    }
