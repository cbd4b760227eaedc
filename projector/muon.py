"""Muon (Jordan et al. 2024): momentum whose update is made orthogonal, for the matrices inside a network.

torch.optim.Muon makes it orthogonal in bfloat16, whatever the weights are in: on a processor that does not multiply such
numbers that takes several times as long as the forward and backward pass together. Here it happens in the precision
of the run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

MOMENTUM = 0.95
QUINTIC = (
    3.4445,
    -4.7750,
    2.0315,
)  # of Newton-Schulz: steep at zero, so that small singular values grow fast
ROUNDS = 5
LIKE_ADAMW = 0.2  # root mean square of an AdamW step of learning rate 1 (Liu et al., arXiv 2502.16982)


class Muon(Optimizer):
    """Nesterov momentum, made orthogonal, and decoupled weight decay; steps of AdamW's size, so one rate serves both.

    Raises ValueError for what is not a matrix.
    """

    def __init__(
        self, matrices: Iterable[Tensor], lr: float, weight_decay: float, dtype: torch.dtype
    ) -> None:
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay})
        self.dtype = dtype
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.ndim != 2:
                    raise ValueError(f"Muon moves matrices; {tuple(matrix.shape)} is none")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of every matrix that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            rate = group["lr"]
            for matrix in group["params"]:
                if matrix.grad is None:
                    continue
                state = self.state[matrix]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(matrix.grad)
                mean = state["momentum_buffer"].lerp_(matrix.grad, 1 - MOMENTUM)  # (M, N)
                update = orthogonal(matrix.grad.lerp(mean, MOMENTUM), self.dtype)  # (M, N)
                matrix.mul_(1 - rate * group["weight_decay"])
                matrix.add_(update.to(matrix.dtype), alpha=-rate * LIKE_ADAMW * max(matrix.shape) ** 0.5)
        return loss


def orthogonal(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """The nearest matrix (M, N) with orthonormal rows or columns, about: its singular values lie near one.

    Newton-Schulz: an odd polynomial of the matrix is that polynomial of its singular values.
    """
    a, b, c = QUINTIC
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.mT if tall else matrix).to(dtype)  # (R, C), R <= C: the products of rows are the fewer
    x = x / x.norm().clamp(min=1e-7)  # no singular value above one
    for _ in range(ROUNDS):
        gram = x @ x.mT  # (R, R)
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)  # (R, C)
    return x.mT if tall else x
