"""A Step without a run: features tanh(x a) b + c, a head of four classes a task, in float64."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from bench.method.step import StepHeads
from bench.method.weights import Weights


@dataclass
class ToyStep:
    """The batch is fixed by ``seed``; its classes are those of task t."""

    t: int
    weights: Weights
    served: Weights
    seed: int = 0
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        self.pixels = torch.randn(8, 6, generator=generator, dtype=torch.float64)
        self.columns = torch.randint(4, (8,), generator=generator) + 4 * (self.t - 1)

    def view(self, images: Tensor, purpose: str = "view") -> Tensor:
        """Images are vectors, shown as they are."""
        return images.double()

    def logits(self, weights: Weights, pixels: Tensor, heads: StepHeads) -> Tensor:
        w = weights.tensors()
        features = torch.tanh(pixels @ w["a"].double()) @ w["b"].double() + w["c"].double()
        last = self.t - 1 if heads == "old" else self.t
        return features @ torch.cat([head(i) for i in range(1, last + 1)]).T


def head(i: int) -> Tensor:
    """Rows (4, 4) of task i."""
    return torch.randn(4, 4, generator=torch.Generator().manual_seed(7 + i), dtype=torch.float64)
