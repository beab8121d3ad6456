"""Linear heads: one a task, trained with its task, concatenated for evaluation, never merged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.seeds import torch_rng


@dataclass
class Head:
    """``weight`` (classes, D) and ``bias`` (classes,)."""

    weight: Tensor
    bias: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Logits (b, classes) of features (b, D), in float32 whatever the features' precision."""
        return torch.nn.functional.linear(features.float(), self.weight, self.bias)


def new_head(classes: int, dim: int, std: float, device: str, *seed: int | str) -> Head:
    """A fresh head: normal weights of that deviation, zero bias; a function of the seed parts alone."""
    weight = std * torch.randn(classes, dim, generator=torch_rng("head", *seed))
    return Head(weight.to(device), torch.zeros(classes, device=device))


def concatenate(heads: Sequence[Head]) -> Head:
    """One head over the classes of all of them, in order."""
    return Head(torch.cat([h.weight for h in heads]), torch.cat([h.bias for h in heads]))
