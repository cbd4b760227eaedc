"""A folded tower says what the tower as it was trained says."""

from __future__ import annotations

import copy

import timm
import torch
from torch import nn

from vision_lm.folding import fold


def tower(name: str) -> nn.Module:
    """Random weights, and norms that are far from doing nothing."""
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.weight, module.running_var):
                assert values is not None
                nn.init.uniform_(values, 0.5, 2.0)
            for values in (module.bias, module.running_mean):
                assert values is not None
                nn.init.uniform_(values, -0.5, 0.5)
    return model


def test_every_norm_of_an_efficientnet_is_folded_and_its_features_stay() -> None:
    """In float64, where a fold in the wrong place cannot hide behind rounding; both ways of padding."""
    for name in ("tf_efficientnet_lite0", "efficientnet_b0"):
        plain = tower(name).double()
        folded = copy.deepcopy(plain)
        fold(folded)
        assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
        for size in (64, 75, 224):  # even all the way down, odd, and odd at the end
            pixels = torch.randn(2, 3, size, size, dtype=torch.float64)
            with torch.no_grad():
                torch.testing.assert_close(folded(pixels), plain(pixels), rtol=1e-9, atol=1e-9)


def test_other_towers_stay_as_they_are() -> None:
    """Where a norm comes before its convolution, folding it into the one before would be wrong."""
    plain = tower("resnetv2_50")
    folded = copy.deepcopy(plain)
    fold(folded)
    pixels = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(folded(pixels), plain(pixels))
