"""The one helper of rules that optimise a few merge coefficients: no epochs, no heads, not a training loop."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def minimise(
    loss: Callable[[Tensor, int], Tensor],
    params: Tensor,
    steps: int,
    lr: float,
    project: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Adam on ``params`` for a fixed number of steps; the last iterate is returned, nothing is selected.

    Args:
        loss: (coefficients, step number) to a scalar whose gradient is wanted.
        params: initial coefficients; not changed.
        steps: optimiser steps; 0 returns a copy of the initial coefficients.
        lr: Adam's learning rate.
        project: what Adam gets instead of a gradient.
    """
    params = params.detach().clone().requires_grad_()
    optimiser = torch.optim.Adam([params], lr=lr)
    for step in range(steps):
        optimiser.zero_grad(set_to_none=True)
        loss(params, step).backward()
        if project is not None and params.grad is not None:
            params.grad = project(params.grad)
        optimiser.step()
    return params.detach()
