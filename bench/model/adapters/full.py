"""Full fine-tuning."""

from __future__ import annotations

from torch import nn
from typing_extensions import Self

from bench.config.schema import AdapterConfig
from bench.method.weights import Weights
from bench.model.adapters.adapter import Adapter, every_parameter


class Full(Adapter[AdapterConfig]):
    """W itself, all of the backbone."""

    def __init__(self, start: Weights) -> None:
        self._vector = start.vector.detach().clone().requires_grad_()
        self._layout = start.layout
        self.parameters = [self._vector]

    @classmethod
    def names(cls, module: nn.Module, options: AdapterConfig, where: str) -> list[str]:
        """All parameters."""
        return every_parameter(module)

    @classmethod
    def begin(cls, start: Weights, options: AdapterConfig, factors: str, seed: int) -> Self:
        """A copy of W_start."""
        return cls(start)

    def weights(self) -> Weights:
        """W."""
        return Weights(self._vector, self._layout)
