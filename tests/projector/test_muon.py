"""Our Muon against torch's: the same steps to the bit in bfloat16, and truly orthogonal ones in float32."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from projector.muon import Muon, orthogonal

SHAPES = ((64, 32), (32, 64), (40, 40))


def test_steps_are_those_of_torch() -> None:
    ours = after_five(lambda matrices: Muon(matrices, 1e-2, 0.05, torch.bfloat16))
    torchs = after_five(
        lambda matrices: torch.optim.Muon(
            matrices, lr=1e-2, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"
        )
    )
    for mine, other in zip(ours, torchs, strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize("shape", SHAPES)
def test_an_update_keeps_the_directions_of_the_gradient_and_levels_their_sizes(
    shape: tuple[int, int],
) -> None:
    """Against the singular values in float64: at most a few tenths from one, in the gradient's own directions."""
    gradient = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    left, _, right = torch.linalg.svd(gradient.double(), full_matrices=False)
    levelled = left.mT @ orthogonal(gradient, torch.float32).double() @ right.mT
    sizes = levelled.diagonal()
    assert ((sizes > 0.3) & (sizes < 1.3)).all()
    assert (levelled - sizes.diag()).abs().max() < 1e-4


def test_what_is_no_matrix_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Muon moves matrices; \(4,\) is none"):
        Muon([nn.Parameter(torch.ones(4))], 1e-2, 0.0, torch.float32)


def after_five(make: Callable[[Sequence[Tensor]], Optimizer]) -> list[Tensor]:
    """Three matrices after five steps along random gradients; the first has none in the second step."""
    noise = torch.Generator().manual_seed(1)
    matrices = [nn.Parameter(torch.randn(shape, generator=noise)) for shape in SHAPES]
    optimizer = make(matrices)
    for step in range(5):
        for matrix in matrices:
            matrix.grad = torch.randn(matrix.shape, generator=noise)
        if step == 1:
            matrices[0].grad = None
        optimizer.step()
    return [matrix.detach() for matrix in matrices]
