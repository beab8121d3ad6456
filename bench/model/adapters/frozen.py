"""No adaptation: heads only."""

from __future__ import annotations

from torch import nn
from typing_extensions import Self

from bench.config.schema import AdapterConfig
from bench.method.weights import Weights
from bench.model.adapters.adapter import Adapter, every_parameter


class Frozen(Adapter[AdapterConfig]):
    """W_start, whatever happens: for trainers that train heads alone, or for every method of a protocol."""

    def __init__(self, start: Weights) -> None:
        self._start = start
        self.parameters = []

    @classmethod
    def names(cls, module: nn.Module, options: AdapterConfig, where: str) -> list[str]:
        """All parameters: what rules are given is the whole backbone, and no training changes it."""
        return every_parameter(module)

    @classmethod
    def begin(cls, start: Weights, options: AdapterConfig, factors: str, seed: int) -> Self:
        """W_start itself."""
        return cls(start)

    def weights(self) -> Weights:
        """W_start."""
        return self._start
