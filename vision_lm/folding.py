"""A convolutional tower for inference: each BatchNorm folded into the convolution before it.

In inference a BatchNorm is a scale and a shift of every channel, which the weights and bias of that convolution can
carry: the same features to float32's last digits, without another pass over each feature map. Only where the order of
execution is known: in timm's EfficientNets.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

# By class, convolutions with the norm that follows each (timm/models/efficientnet.py and _efficientnet_blocks.py).
PAIRS = {
    "EfficientNet": (("conv_stem", "bn1"), ("conv_head", "bn2")),
    "DepthwiseSeparableConv": (("conv_dw", "bn1"), ("conv_pw", "bn2")),
    "InvertedResidual": (("conv_pw", "bn1"), ("conv_dw", "bn2"), ("conv_pwl", "bn3")),
}


def fold(tower: nn.Module) -> None:
    """Fold what can be folded, in place. The tower must be in evaluation mode; afterwards it can no longer be trained."""
    for block in tower.modules():
        for convolution, norm in PAIRS.get(type(block).__name__, ()):
            follows: Any = getattr(block, norm)
            if isinstance(follows, nn.BatchNorm2d) and not follows.training:
                setattr(block, convolution, fuse_conv_bn_eval(getattr(block, convolution), follows))
                setattr(
                    block, norm, getattr(follows, "act", nn.Identity())
                )  # timm's norms hold the activation
