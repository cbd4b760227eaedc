"""From a sheet's pixels to the views that the tower sees, and from its features of the parts back to the whole's grid.

See `vision_lm.crop_sheet` for what a sheet is and where both ways come from.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from vision_lm.config import Crops


def views(sheets: Tensor, crops: Crops, size: int) -> tuple[Tensor, Tensor | None]:
    """Sheets (B, 3, H, W) -> the wholes (B, 3, S, S), and the parts (B, r, c, 3, S, S) or None where there is one alone."""
    if sheets.shape[-2:] == (size, size):
        return sheets, None
    if crops.kind == "grid":
        return F.interpolate(sheets, (size, size), mode="bilinear"), _parts(sheets, size)
    return sheets[..., :size, :size], _parts(sheets[..., size:, :], size)


def _parts(pixels: Tensor, size: int) -> Tensor:
    """(B, 3, r S, c S) -> (B, r, c, 3, S, S)."""
    return pixels.unflatten(3, (-1, size)).unflatten(2, (-1, size)).permute(0, 2, 4, 1, 3, 5)


def merge(features: Tensor, crops: Crops) -> Tensor:
    """The parts' features (B, r, c, g, g, Dv) -> the picture's (B, g * g, Dv), on the grid of one view."""
    rows, columns, side = features.shape[1:4]
    if crops.kind == "grid":
        joined = features.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)  # (B, Dv, r g, c g)
        merged = F.interpolate(joined, (side, side), mode="bilinear")
    else:
        down, across = _kept(rows, side, crops.margin), _kept(columns, side, crops.margin)
        lines = [
            torch.cat([features[:, y, x, down[y]][:, :, across[x]] for x in range(columns)], dim=2)
            for y in range(rows)
        ]
        joined = torch.cat(lines, dim=1).permute(0, 3, 1, 2)  # (B, Dv, h, w)
        merged = F.adaptive_avg_pool2d(joined, (side, side))
    return merged.flatten(2).transpose(1, 2)  # (B, g * g, Dv)


def _kept(count: int, side: int, margin: int) -> list[slice]:
    """Of each of `count` parts in a row, the patches that are not its neighbour's."""
    return [slice(margin if n else 0, side - margin if n < count - 1 else side) for n in range(count)]
