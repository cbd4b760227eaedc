"""A checkpoint opened for training, and closed again into a checkpoint."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from projector.module import Projector
from projector.recipe import Recipe
from projector.vision_language import VisionLanguage
from vision_lm.checkpoint import Checkpoint, write_checkpoint
from vision_lm.encoder import ImageEncoder
from vision_lm.errors import TrainingError
from vision_lm.phi import build_phi


def open_for_training(checkpoint: Checkpoint, recipe: Recipe) -> VisionLanguage:
    """All weights in float32, the parts the recipe trains unfrozen, LoRA layers added if it asks for them.

    Raises TrainingError for what only answering knows: pictures in parts, and prefix attention.
    """
    config = checkpoint.config
    if config.vision.crops is not None or config.text.attention != "causal":
        raise TrainingError(
            f"{recipe.checkpoint}: sees pictures in parts, or in both directions, which training does not compute; train a "
            "checkpoint that sees them whole and causally"
        )
    encoder = ImageEncoder(config.vision)
    projector = Projector(**dataclasses.asdict(config.projector))
    phi: Any = build_phi(config.text)
    if not torch.cuda.is_available():  # masked flash attention is slower than plain products on a CPU
        phi.set_attn_implementation("eager")
    for prefix, module in (("encoder.", encoder), ("projector.", projector), ("phi.", phi)):
        module.load_state_dict(_part(checkpoint.tensors, prefix), strict=True)
    encoder.eval()  # BatchNorm keeps the statistics it was trained with, tuned or not
    _freeze(encoder, recipe.tower == "frozen")
    _freeze(projector, recipe.projector == "frozen")
    _freeze(phi, recipe.language_model != "full")
    if recipe.language_model == "lora":
        phi = _with_lora(phi, recipe.lora_rank)
    return VisionLanguage(encoder, projector, phi, config.prompt.image_token_id)


def save_trained(model: VisionLanguage, checkpoint: Checkpoint, folder: Path) -> None:
    """Write the trained parts back in the checkpoint's own dtypes; LoRA is merged into the weights it adapts."""
    phi: Any = model.phi
    parts = {"encoder.": model.encoder.state_dict(), "projector.": model.projector.state_dict()}
    parts["phi."] = _merged(phi) if hasattr(phi, "get_base_model") else phi.state_dict()
    tensors = {
        prefix + name: tensor.detach().cpu().to(checkpoint.tensors[prefix + name].dtype).contiguous()
        for prefix, state in parts.items()
        for name, tensor in state.items()
    }
    config = dataclasses.replace(checkpoint.config, projector_trained=True)
    write_checkpoint(folder, config, tensors, checkpoint.tokenizer)


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    part = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
    return {name: t.float() if t.is_floating_point() else t for name, t in part.items()}


def _freeze(module: nn.Module, frozen: bool) -> None:
    for parameter in module.parameters():
        parameter.requires_grad_(not frozen)


def _with_lora(phi: nn.Module, rank: int) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    targets = ["q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"]
    return get_peft_model(
        phi, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets, task_type="CAUSAL_LM")
    )


@torch.no_grad()
def _merged(phi: Any) -> dict[str, Tensor]:
    """The base model's state with every adapter added in. The model itself is not touched: to add and subtract would leave
    rounding errors in weights that a resumed run reads from the start.
    """
    base = phi.get_base_model()
    state = {name: tensor for name, tensor in base.state_dict().items() if ".lora_" not in name}
    for name, layer in base.named_modules():
        if hasattr(layer, "get_delta_weight"):
            weight = f"{name}.base_layer.weight"
            state[weight] = state[weight] + layer.get_delta_weight(layer.active_adapter[0])
    return {name.replace(".base_layer", ""): tensor for name, tensor in state.items()}
