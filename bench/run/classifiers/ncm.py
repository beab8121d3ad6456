"""``ncm`` and ``ncm_both``: a prototype a class, compared by cosine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from bench.config.schema import ProtocolConfig
from bench.data.scenario import CLASS_INCREMENTAL, Scenario
from bench.data.stream import TaskData
from bench.model.heads import Head
from bench.run.classifiers.serving import Features, Fitted


class Means(Fitted):
    """``ncm``: logits are cosines to the mean feature of each class, over all tasks that have it (SimpleCIL,
    arXiv:2303.07338).
    """

    def __init__(
        self, protocol: ProtocolConfig, dim: int, device: str, run_seed: int, scenario: Scenario = CLASS_INCREMENTAL
    ) -> None:
        super().__init__(protocol, dim, device, run_seed, scenario)
        self._sums: Tensor | None = None  # (classes, D) float64, where later tasks add to them

    @property
    def carried(self) -> int:  # type: ignore[override]
        """Bytes of the sums."""
        return 0 if self._sums is None else self._sums.numel() * self._sums.element_size()

    def fit(
        self, tasks: Sequence[TaskData], trained: Sequence[Head], features: Features, softmax: str = "all"
    ) -> dict[str, float]:
        """Keep the direction of the mean feature of each class."""
        for task in tasks:
            x, y = features(task)
            sums = x.new_zeros(len(task.columns), self.dim, dtype=torch.float64)
            sums.index_add_(0, y - task.columns.start, x.double())
            if self.scenario.shared_head:
                self._sums = sums = sums if self._sums is None else sums + self._sums
            rows = normalize(sums, dim=1).float()  # a class without images has no direction: its cosine is 0
            self._heads.append(Head(rows, rows.new_zeros(len(rows)), normalise=True))
        return {}

    def tensors(self) -> dict[str, Tensor]:
        """Its heads and the sums."""
        return super().tensors() | ({} if self._sums is None else {"sums": self._sums})

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Its heads and the sums."""
        super().restore(tensors)
        self._sums = tensors["sums"].to(self.device) if "sums" in tensors else None


class MeansOfBoth(Means):
    """``ncm_both``: the same on features of theta_0 and of the served weights, side by side as they come (ADAM, later
    called APER, in the same paper; the authors' code scales neither part).
    """

    beside_pretrained = True

    def __init__(
        self, protocol: ProtocolConfig, dim: int, device: str, run_seed: int, scenario: Scenario = CLASS_INCREMENTAL
    ) -> None:
        super().__init__(protocol, 2 * dim, device, run_seed, scenario)
