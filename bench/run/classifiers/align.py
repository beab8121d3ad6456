"""``align``: all heads trained again together on features drawn from a Gaussian a class (SLCA, arXiv:2303.05118)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from bench.common.seeds import torch_rng
from bench.config.schema import ProtocolConfig
from bench.data.scenario import CLASS_INCREMENTAL, Scenario
from bench.data.stream import TaskData
from bench.model.heads import Head, concatenate
from bench.run.classifiers.serving import Classifier, Features, Serving

JITTER = 1e-4  #: added to a covariance's diagonal
MOMENTUM, WEIGHT_DECAY = 0.9, 5e-4
OLDEST_SCALE = 0.9  #: of a mean, were it infinitely old: 0.9 + 0.1 t / T for the T-th task's alignment


@dataclass(frozen=True)
class Gaussian:
    """Features of one class in one task."""

    t: int  #: of the task
    column: int  #: of the class
    mean: Tensor  #: (D,) float32
    factor: Tensor  #: (D, D) float32, lower; factor factor^T is the covariance

    @classmethod
    def of(cls, t: int, column: int, x: Tensor) -> Gaussian:
        """Of features (n, D), n at least 1; the covariance is divided by n - 1."""
        rows = x.double()
        centred = rows - rows.mean(0)
        covariance = centred.T @ centred / max(1, len(x) - 1)
        covariance.diagonal().add_(JITTER)
        factor = torch.linalg.cholesky(covariance).float()
        return cls(t, column, rows.mean(0).float(), factor.contiguous())  # as it is read back: equal bits on resuming

    def drawn(self, normal: Tensor, t: int) -> Tensor:
        """Samples (n, D) for the alignment after task t, of standard normal numbers (n, D)."""
        scale = OLDEST_SCALE + (1 - OLDEST_SCALE) * self.t / t
        return self.mean * scale + normal @ self.factor.T


class Align(Serving):
    """After each task but the first: ``head.align_epochs`` passes over samples of all classes seen, from the heads as
    they were trained.

    As the authors' code does it (models/slca.py; CoFiMA, arXiv:2312.08977, aligns by the same): a Gaussian a class, of
    features under the weights that are served when its task ends, the covariance with 1e-4 on its diagonal; means of
    older tasks shrunk by up to a tenth; 256 samples a class in each epoch and batches of 256; SGD with momentum 0.9,
    weight decay 5e-4 and a cosine by epochs; logits divided by the mean over tasks of the norm of each head's logits,
    and by a temperature of 0.1. An alignment is for serving alone: the next one begins at the trained heads again, not
    at aligned ones. The Gaussians stay as they were fitted while the served weights move on: that drift is part of the
    result. SLCA's own learning rates are a trainer's matter and not here.

    Where tasks share their classes (domain-incremental) each task brings a Gaussian a class, and the one head is
    trained on all; SLCA itself is class-incremental. After a joint training all tasks' heads are aligned at once.
    """

    def __init__(
        self, protocol: ProtocolConfig, dim: int, device: str, run_seed: int, scenario: Scenario = CLASS_INCREMENTAL
    ) -> None:
        super().__init__(protocol, dim, device, run_seed, scenario)
        self._gaussians: list[Gaussian] = []

    @property
    def carried(self) -> int:  # type: ignore[override]
        """Bytes of means and covariances."""
        return sum(4 * (g.mean.numel() + g.factor.numel()) for g in self._gaussians)

    def fit(
        self, tasks: Sequence[TaskData], trained: Sequence[Head], features: Features, softmax: str = "all"
    ) -> dict[str, float]:
        """Fit the tasks' Gaussians."""
        for task in tasks:
            x, y = features(task)
            present = (column for column in task.columns if bool((y == column).any()))
            self._gaussians += [Gaussian.of(task.t, column, x[y == column]) for column in present]
        self._last = tasks[-1]
        return {}

    def classifier(self, trained: Sequence[Head]) -> Classifier:
        """The open heads, trained on samples; after the first task as they are."""
        heads = list(self.scenario.open_heads(trained))
        head = concatenate(heads)  # a copy
        return self._aligned(head, [len(each.weight) for each in heads]) if self._last.t > 1 else head

    def _aligned(self, head: Head, sizes: list[int]) -> Head:
        config, parameters = self.protocol.head, [p.requires_grad_() for p in head.parameters]
        optimiser = torch.optim.SGD(parameters, config.align_lr, MOMENTUM, weight_decay=WEIGHT_DECAY)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, config.align_epochs)
        for epoch in range(config.align_epochs):
            x, y = self._samples(epoch)
            for rows, columns in zip(x.split(config.align_samples), y.split(config.align_samples), strict=True):
                logits = head(rows)
                norms = torch.stack([part.norm(dim=1) for part in logits.split(sizes, 1)], 1) + 1e-7
                scaled = logits / norms.mean(1, keepdim=True) / config.align_temperature
                optimiser.zero_grad(set_to_none=True)
                cross_entropy(scaled, columns).backward()
                optimiser.step()
            schedule.step()
        [aligned] = head.split([sum(sizes)])
        return aligned

    def _samples(self, epoch: int) -> tuple[Tensor, Tensor]:
        """An epoch's samples (classes n, D) and their columns, shuffled."""
        count, rng = self.protocol.head.align_samples, torch_rng("align", self.run_seed, self._last.content, epoch)
        normal = (torch.randn(count, self.dim, generator=rng).to(self.device) for _ in self._gaussians)
        x = torch.cat([g.drawn(z, self._last.t) for g, z in zip(self._gaussians, normal, strict=True)])
        y = torch.tensor([g.column for g in self._gaussians], device=self.device).repeat_interleave(count)
        order = torch.randperm(len(x), generator=rng).to(self.device)
        return x[order], y[order]

    def tensors(self) -> dict[str, Tensor]:
        """The Gaussians."""
        return {
            "of": torch.tensor([[g.t, g.column] for g in self._gaussians]),
            "means": torch.stack([g.mean for g in self._gaussians]),
            "factors": torch.stack([g.factor for g in self._gaussians]),
        }

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """The Gaussians."""
        means, factors = (tensors[name].to(self.device) for name in ("means", "factors"))
        places = tensors["of"].tolist()
        self._gaussians = [Gaussian(t, c, *pair) for (t, c), *pair in zip(places, means, factors, strict=True)]
