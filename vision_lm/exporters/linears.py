"""What is folded exactly into neighbouring weights where the other engine has no place for it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from vision_lm.config import ProjectorConfig
from vision_lm.errors import ExportError


def read_mlp(config: ProjectorConfig, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The projector as Llava's `linear_1`, GELU, `linear_2`, whose hidden layer is as wide as the language model.

    Standardised features are folded into the first layer; a narrower hidden layer gets units that give nothing.
    Raises ExportError for a projector that does more.
    """
    if config.positions:
        raise ExportError("position embeddings that the projector adds to its output, which Llava's does not")
    if config.residual_features:
        raise ExportError("a second MLP in the projector, which Llava's does not have")
    if config.hidden_features > config.out_features:
        raise ExportError(
            f"a projector {config.hidden_features} wide inside; Llava's has the language model's {config.out_features}"
        )
    weight, bias = (tensors[f"projector.patches.0.{part}"].double() for part in ("weight", "bias"))
    if config.standardise:
        mean, spread = (tensors[f"projector.{part}"].double() for part in ("mean", "spread"))
        weight = weight / spread  # (H, Dv)
        bias = bias - weight @ mean  # (H,)
    extra = config.out_features - config.hidden_features
    last = tensors["projector.patches.2.weight"]  # (Dt, H)
    dtype = last.dtype
    return {
        "linear_1.weight": F.pad(weight, (0, 0, 0, extra)).to(dtype),
        "linear_1.bias": F.pad(bias, (0, extra)).to(dtype),
        "linear_2.weight": F.pad(last, (0, extra)),
        "linear_2.bias": tensors["projector.patches.2.bias"],
    }


def fold_head_bias(phi: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A Phi that computes the same logits with `lm_head.bias` zero.

    LayerNorm's output n (before its own weight and bias) sums to zero. So adding a number u[v] to all of a head's row v
    changes nothing, W n + u (1 . n) = W n, until the LayerNorm's bias is made a constant 1: then the row gives
    W n + sum(W) + Dt u, and u is free to make this the old logit, biases of LayerNorm and head included.
    """
    if not phi["lm_head.bias"].any():
        return dict(phi)
    dtype = phi["lm_head.weight"].dtype
    gain, shift = (phi[f"model.final_layernorm.{part}"].double() for part in ("weight", "bias"))  # (Dt,)
    head = phi["lm_head.weight"].double()  # (V, Dt)
    wanted = head @ shift + phi["lm_head.bias"].double()  # (V,)
    head = head * gain
    head += ((wanted - head.sum(1)) / len(gain))[:, None]
    folded = {
        "lm_head.weight": head.to(dtype),
        "lm_head.bias": torch.zeros_like(phi["lm_head.bias"]),
        "model.final_layernorm.weight": torch.ones_like(phi["model.final_layernorm.weight"]),
        "model.final_layernorm.bias": torch.ones_like(phi["model.final_layernorm.bias"]),
    }
    return {**phi, **folded}
