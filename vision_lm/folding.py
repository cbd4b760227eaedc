"""A convolutional tower for inference: the same features to float32's last digits, in fewer passes over each feature map.

Each BatchNorm is folded into the convolution before it, whose weights and bias can carry its scale and shift. A convolution
of one pixel is the matrix product that it is where channels lie innermost. Of an even number of pixels TensorFlow's "same"
padding has one more after them than before: a kernel with a row and a column of zeros in front sees the same with as many on
both sides, and no padded copy of the map is made. Only where the order of execution is known: in timm's EfficientNets.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
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
        for name, norm in PAIRS.get(type(block).__name__, ()):
            follows: Any = getattr(block, norm)
            if isinstance(follows, nn.BatchNorm2d) and not follows.training:
                convolution = fuse_conv_bn_eval(getattr(block, name), follows)
                setattr(block, name, _fewer_passes(convolution))
                activation = getattr(follows, "act", nn.Identity())  # timm's norms hold it
                if hasattr(activation, "inplace"):
                    activation.inplace = True  # nothing else reads what the convolution gave
                setattr(block, norm, activation)


def _fewer_passes(convolution: nn.Conv2d) -> nn.Module:
    if convolution.kernel_size == convolution.stride == (1, 1) and convolution.groups == 1:
        return Pointwise(convolution)
    same = type(convolution).__name__ == "Conv2dSame"  # timm is heavy to import for a name
    if same and convolution.stride == (2, 2) and convolution.dilation == (1, 1):
        return Halving(convolution)
    return convolution


class Pointwise(nn.Module):
    """A convolution of one pixel: (B, C, H, W) -> (B, C', H, W), channels innermost in memory."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(convolution.weight.flatten(1)), convolution.bias

    def forward(self, maps: Tensor) -> Tensor:
        return F.linear(maps.permute(0, 2, 3, 1), self.weight, self.bias).permute(0, 3, 1, 2)


class Halving(nn.Module):
    """A convolution of every second pixel with "same" padding: (B, C, H, W) -> (B, C', H / 2, W / 2), rounded up."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.exact = convolution
        self.widened = nn.Parameter(F.pad(convolution.weight, (1, 0, 1, 0)))

    def forward(self, maps: Tensor) -> Tensor:
        if maps.shape[-2] % 2 or maps.shape[-1] % 2:
            return self.exact(maps)
        padding, groups = self.exact.kernel_size[0] // 2, self.exact.groups
        return F.conv2d(maps, self.widened, self.exact.bias, stride=2, padding=padding, groups=groups)
