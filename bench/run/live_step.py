"""The Step that a trainer's loss sees in a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bench.data.transforms import Transform
from bench.method.step import StepHeads
from bench.method.weights import Weights
from bench.model.heads import Head


@dataclass
class LiveStep:
    """One optimiser step of task t; see :class:`bench.method.Step`."""

    t: int
    weights: Weights
    pixels: Tensor
    columns: Tensor
    rng: np.random.Generator
    features: Tensor  #: (b, D) of the step's pixels at its weights
    forward: Callable[[Weights, Tensor], Tensor]  #: features (n, D) in the training's precision
    transform: Transform
    seed: tuple[int | str, ...]  #: of its views
    heads: Mapping[StepHeads, Sequence[Head]]  #: side by side in column order
    temperature: float
    taught_by: Weights | None  #: theta_hat_{t-1} where the trainer declares that it reads it

    @property
    def served(self) -> Weights:
        """theta_hat_{t-1}."""
        if self.taught_by is None:
            raise PermissionError("a trainer that does not declare reads_served may not read step.served")
        return self.taught_by

    def view(self, images: Tensor, purpose: str = "view") -> Tensor:
        """A training view of stored images."""
        return self.transform.augmented(images, *self.seed, purpose)

    def logits(self, weights: Weights, pixels: Tensor, heads: StepHeads) -> Tensor:
        """Logits (n, classes) on the scale of the loss."""
        if not self.heads[heads]:
            raise ValueError(f"step.logits: there are no {heads} heads at task {self.t}")
        here = weights is self.weights and pixels is self.pixels
        features = self.features if here else self.forward(weights, pixels)
        return torch.cat([head(features) for head in self.heads[heads]], -1) / self.temperature
