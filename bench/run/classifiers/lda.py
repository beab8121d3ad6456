"""``lda``: linear discriminants with one covariance for all classes, in closed form (SLDA, arXiv:1909.01520)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from bench.config.schema import ProtocolConfig
from bench.data.scenario import CLASS_INCREMENTAL, Scenario
from bench.data.stream import TaskData
from bench.method.weights import Weights
from bench.model.heads import Head
from bench.run.classifiers.serving import Classifier, Features, Serving


@dataclass(frozen=True)
class Discriminants:
    """``weight`` (D, classes) and ``bias`` (classes,), float64: the inverse of a narrow covariance is large."""

    weight: Tensor
    bias: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Logits (b, classes)."""
        return features.double() @ self.weight + self.bias

    def digest(self) -> str:
        """Of the bits."""
        return Weights.of({"w": self.weight, "b": self.bias}).digest()


class Discriminant(Serving):
    """Logits x^T P mu_c - mu_c^T P mu_c / 2 with P = ((1 - eps) S + eps I)^-1.

    mu_c is the mean feature of class c, S the covariance within classes, sum over all images of (x - mu)(x - mu)^T / n,
    and eps is ``head.shrinkage`` (the authors' 1e-4). Classes count as equally frequent, as in the authors' code; S is
    that of all images seen, where the authors update it image by image and may begin with a shrunk estimate. Carried
    are sums: of x x^T, of x by class, of images.
    """

    def __init__(
        self, protocol: ProtocolConfig, dim: int, device: str, run_seed: int, scenario: Scenario = CLASS_INCREMENTAL
    ) -> None:
        super().__init__(protocol, dim, device, run_seed, scenario)
        self._squares = torch.zeros(dim, dim, dtype=torch.float64, device=device)
        self._sums = self._squares.new_zeros(0, dim)
        self._counts = self._squares.new_zeros(0)

    @property
    def carried(self) -> int:  # type: ignore[override]
        """Bytes of the sums."""
        return sum(x.numel() * x.element_size() for x in self.tensors().values())

    def fit(
        self, tasks: Sequence[TaskData], trained: Sequence[Head], features: Features, softmax: str = "all"
    ) -> dict[str, float]:
        """Add the tasks' sums."""
        more = tasks[-1].columns.stop - len(self._counts)
        self._sums, self._counts = pad(self._sums, (0, 0, 0, more)), pad(self._counts, (0, more))
        for task in tasks:
            x, y = features(task)
            x = x.double()
            self._squares.addmm_(x.T, x)
            self._sums.index_add_(0, y, x)
            self._counts.index_add_(0, y, x.new_ones(len(x)))
        return {}

    def classifier(self, trained: Sequence[Head]) -> Classifier:
        """The discriminants of the sums; a class without images is never the answer."""
        means = self._sums / self._counts.clamp(min=1)[:, None]
        within = (self._squares - means.T @ self._sums) / self._counts.sum()
        covariance = (1 - self.protocol.head.shrinkage) * within
        covariance.diagonal().add_(self.protocol.head.shrinkage)
        weight = torch.linalg.solve(covariance, means.T)
        bias = -(means.T * weight).sum(0) / 2
        return Discriminants(weight, bias.masked_fill(self._counts == 0, -torch.inf))

    def tensors(self) -> dict[str, Tensor]:
        """The sums."""
        return {"squares": self._squares, "sums": self._sums, "counts": self._counts}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """The sums."""
        squares, sums, counts = (tensors[name].to(self.device) for name in ("squares", "sums", "counts"))
        self._squares, self._sums, self._counts = squares, sums, counts
