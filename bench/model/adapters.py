"""What an optimiser changes, and the dense weights that it stands for."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from bench.method.weights import Weights


class Adapter(Protocol):
    """What an optimiser changes, and the dense weights that it stands for."""

    parameters: list[Tensor]

    def weights(self) -> Weights:
        """W, with its graph."""
        ...


class Full:
    """Full fine-tuning: W itself."""

    def __init__(self, start: Weights) -> None:
        self._vector = start.vector.detach().clone().requires_grad_()
        self._layout = start.layout
        self.parameters = [self._vector]

    def weights(self) -> Weights:
        """W."""
        return Weights(self._vector, self._layout)


class LoRA:
    """W = W_start + scale * B A for every adapted tensor; tensors of one shape are one batched product."""

    def __init__(
        self, factors: dict[str, tuple[Tensor, Tensor]], start: Weights, scale: float, trained: str = "AB"
    ) -> None:
        groups: dict[tuple[int, ...], list[str]] = {}
        for name, shape in zip(start.layout.names, start.layout.shapes, strict=True):
            groups.setdefault(shape, []).append(name)
        self._start, self._scale, self._groups = start, scale, list(groups.values())
        self.A = [torch.stack([factors[n][0] for n in names]).requires_grad_("A" in trained) for names in self._groups]
        self.B = [torch.stack([factors[n][1] for n in names]).requires_grad_("B" in trained) for names in self._groups]
        self.parameters = [p for p in (*self.A, *self.B) if p.requires_grad]

    def weights(self) -> Weights:
        """W_start + scale * B A."""
        products = [torch.bmm(b, a) for a, b in zip(self.A, self.B, strict=True)]
        if len(products) == 1:
            delta = products[0].reshape(-1)
        else:
            by_name = {
                n: p for names, ps in zip(self._groups, products, strict=True) for n, p in zip(names, ps, strict=True)
            }
            delta = torch.cat([by_name[n].reshape(-1) for n in self._start.layout.names])
        return Weights(self._start.vector + self._scale * delta, self._start.layout)


class Frozen:
    """No adaptation: heads only."""

    def __init__(self, start: Weights) -> None:
        self._start = start
        self.parameters: list[Tensor] = []

    def weights(self) -> Weights:
        """W_start."""
        return self._start
