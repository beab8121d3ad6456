"""What classifies features after a merge: the heads as trained, or a classifier fitted to the served backbone.

``protocol.head.kind`` chooses, and a method's spelling may (``average@merged/ncm``):

* ``linear``, ``zero_shot``: the heads as they are, concatenated.
* ``refit``: the trained head trained again on features of the served weights; heads of past tasks stay.
* ``ncm``: a prototype a class, the mean of its features, compared by cosine (SimpleCIL, arXiv:2303.07338).
* ``ridge``: ridge regression on random features (RanPAC, arXiv:2307.02251).

The last three read the current task's training images once, as they are shown at test, under the weights that are
served after that task. What was fitted to past tasks stays, so it drifts where the weights move on: that is part of
the result. Where they do not (a frozen backbone), ``ncm`` and ``ridge`` are those of all images at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize, one_hot, pad

from bench.common.seeds import torch_rng
from bench.config.schema import ProtocolConfig
from bench.data.scenario import CLASS_INCREMENTAL, Scenario
from bench.data.stream import TaskData
from bench.method.weights import Weights
from bench.model.heads import Head, concatenate

RIDGES = [10.0**power for power in range(-8, 9)]  #: RanPAC's candidates
#: of one task: features (n, D) float32 of its training images under the served weights, and their columns (n,)
Features = Callable[[TaskData], tuple[Tensor, Tensor]]


class Classifier(Protocol):
    """Logits over all classes seen."""

    def __call__(self, features: Tensor) -> Tensor:
        """(b, classes) of features (b, D)."""
        ...

    def digest(self) -> str:
        """Equal for equal bits."""
        ...


class Serving:
    """The heads as trained: ``linear`` and ``zero_shot``. Base of what is fitted after a merge."""

    carried = 0  #: bytes that cross a task boundary, beyond the rows and biases of a head

    def __init__(
        self, protocol: ProtocolConfig, dim: int, device: str, run_seed: int, scenario: Scenario = CLASS_INCREMENTAL
    ) -> None:
        self.protocol, self.dim, self.device, self.run_seed = protocol, dim, device, run_seed
        self.scenario = scenario

    def fit(
        self, tasks: Sequence[TaskData], trained: Sequence[Head], features: Features, softmax: str = "all"
    ) -> dict[str, float]:
        """Take in the tasks just trained (all seen, after a joint training).

        Args:
            tasks: in order.
            trained: their heads as trained (see :meth:`Scenario.by_head`), which are not changed.
            features: reads the tasks' images.
            softmax: the trainer's: over all heads of ``tasks`` together, or over the ``own`` one.

        Returns:
            Numbers for the record.
        """
        return {}

    def classifier(self, trained: Sequence[Head]) -> Classifier:
        """What answers now, given the trained heads of all tasks seen."""
        return concatenate(self.scenario.open_heads(trained))

    def tensors(self) -> dict[str, Tensor]:
        """What has to be there again when a run is resumed after a task."""
        return {}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what :meth:`tensors` gave."""


class _Fitted(Serving):
    """Heads of its own, fitted once to each task."""

    def __init__(
        self, protocol: ProtocolConfig, dim: int, device: str, run_seed: int, scenario: Scenario = CLASS_INCREMENTAL
    ) -> None:
        super().__init__(protocol, dim, device, run_seed, scenario)
        self._heads: list[Head] = []

    def classifier(self, trained: Sequence[Head]) -> Classifier:
        """These heads."""
        return concatenate(self.scenario.open_heads(self._heads))

    def tensors(self) -> dict[str, Tensor]:
        """Its heads."""
        return {name: x for i, head in enumerate(self._heads) for name, x in head.tensors(f"{i}.").items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Its heads."""
        count = sum(name.endswith(".weight") for name in tensors)
        self._heads = [Head.of(tensors, self.device, f"{i}.") for i in range(count)]


class Means(_Fitted):
    """``ncm``: logits are cosines to the mean feature of each class, over all tasks that have it."""

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


class Refit(_Fitted):
    """``refit``: passes of AdamW over fixed features, with the training's batch, head rate and loss; cosine to zero."""

    def fit(
        self, tasks: Sequence[TaskData], trained: Sequence[Head], features: Features, softmax: str = "all"
    ) -> dict[str, float]:
        """Train the tasks' heads again."""
        # With a softmax over each task's own classes the heads have nothing to do with one another.
        groups = [(tasks, trained)]
        if softmax == "own":
            groups = [(own, [head]) for own, head in zip(self.scenario.by_head(tasks), trained, strict=True)]
        for own, heads in groups:
            self._heads += self._trained(own, heads, features)
        return {}

    def _trained(self, tasks: Sequence[TaskData], heads: Sequence[Head], features: Features) -> list[Head]:
        config, epochs = self.protocol.train, self.protocol.head.refit_epochs
        pairs = [features(task) for task in tasks]
        x, y = torch.cat([p[0] for p in pairs]), torch.cat([p[1] for p in pairs]) - tasks[0].columns.start
        head = concatenate(heads)  # a copy
        parameters = [p.requires_grad_() for p in head.parameters]
        optimiser = torch.optim.AdamW(parameters, lr=config.head_lr, weight_decay=config.weight_decay, fused=True)
        steps = epochs * math.ceil(len(x) / config.batch)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        for epoch in range(epochs):
            rng = torch_rng("refit", self.run_seed, *(task.content for task in tasks), epoch)
            for part in torch.randperm(len(x), generator=rng).to(x.device).split(config.batch):
                logits = head(x[part]) / config.temperature
                optimiser.zero_grad(set_to_none=True)
                cross_entropy(logits, y[part], label_smoothing=config.label_smoothing).backward()
                optimiser.step()
                schedule.step()
        return head.split([len(head.weight) for head in heads])


@dataclass(frozen=True)
class RandomFeatures:
    """Linear on h = relu(f ``projection``): (D, M) and ``weight`` (M, classes), float64."""

    projection: Tensor
    weight: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Logits (b, classes)."""
        return torch.relu(features.double() @ self.projection) @ self.weight

    def digest(self) -> str:
        """Of the bits."""
        return Weights.of({"p": self.projection, "w": self.weight}).digest()


class Ridge(Serving):
    """``ridge``: (G + lambda I)^-1 C with G = sum h h^T and C = sum h y^T over all tasks, h and y one-hot.

    The projection is one draw a run. Without a fixed lambda it is chosen at every task, as the authors' code does: of
    1e-8, ..., 1e8 the one whose solution on four fifths of this task's images alone has the least squared error on the
    others.
    """

    def __init__(
        self, protocol: ProtocolConfig, dim: int, device: str, run_seed: int, scenario: Scenario = CLASS_INCREMENTAL
    ) -> None:
        super().__init__(protocol, dim, device, run_seed, scenario)
        size, rng = protocol.head.projection, torch_rng("projection", run_seed)
        self._projection = torch.randn(dim, size, generator=rng, dtype=torch.float64).to(device)
        self._G, self._C = (torch.zeros(size, n, dtype=torch.float64, device=device) for n in (size, 0))
        self._weight = self._C

    @property
    def carried(self) -> int:  # type: ignore[override]
        """Bytes of G and C."""
        return sum(x.numel() * x.element_size() for x in (self._G, self._C))

    def fit(
        self, tasks: Sequence[TaskData], trained: Sequence[Head], features: Features, softmax: str = "all"
    ) -> dict[str, float]:
        """Add the tasks' sums, and solve."""
        pairs = [features(task) for task in tasks]
        x, y = torch.cat([p[0] for p in pairs]), torch.cat([p[1] for p in pairs])
        rng = torch_rng("ridge", self.run_seed, *(task.content for task in tasks))
        order = torch.randperm(len(x), generator=rng).to(x.device)
        parts = order.split(max(1, math.ceil(0.8 * len(x))))  # one image leaves nothing to choose on
        sums = [self._sums(x[part], y[part], tasks[-1].columns.stop) for part in parts]
        least = self.protocol.head.ridge or self._choose(*sums[0], *sums[-1])
        self._C = pad(self._C, (0, tasks[-1].columns.stop - self._C.shape[1]))
        for G, C in sums:
            self._G += G
            self._C += C
        # What is positive definite for one task may not be for the sum of all: then the next larger candidate.
        candidates = [self.protocol.head.ridge] if self.protocol.head.ridge else [r for r in RIDGES if r >= least]
        for ridge in candidates:
            found = _solve(self._G, self._C, ridge)
            if found is not None:
                self._weight = found
                return {"head_ridge": ridge}
        raise FloatingPointError(f"head.ridge {least:g} is too small for {len(self._G)} random features; raise it")

    def _sums(self, x: Tensor, y: Tensor, classes: int) -> tuple[Tensor, Tensor]:
        """Of these images alone: G (M, M) and C (M, classes)."""
        G, C = torch.zeros_like(self._G), self._G.new_zeros(len(self._G), classes)
        for part in torch.arange(len(x), device=x.device).split(self.protocol.eval_batch):
            h = torch.relu(x[part].double() @ self._projection)
            G.addmm_(h.T, h)
            C.addmm_(h.T, one_hot(y[part], classes).double())
        return G, C

    def _choose(self, G: Tensor, C: Tensor, G_rest: Tensor, C_rest: Tensor) -> float:
        """The candidate whose solution of (G, C) errs least on the images of the other two sums."""

        def error(ridge: float) -> float:
            W = _solve(G, C, ridge)  # |h W - y|^2 over all images, up to a constant
            return math.inf if W is None else float((W * (G_rest @ W - 2 * C_rest)).sum())

        return min(RIDGES, key=error)

    def classifier(self, trained: Sequence[Head]) -> Classifier:
        """The last solution."""
        return RandomFeatures(self._projection, self._weight)

    def tensors(self) -> dict[str, Tensor]:
        """G and C."""
        return {"G": self._G, "C": self._C}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """G and C."""
        self._G, self._C = (tensors[name].to(self.device) for name in ("G", "C"))


def _solve(G: Tensor, C: Tensor, ridge: float) -> Tensor | None:
    """(G + ridge I)^-1 C by Cholesky, or None where that is not positive definite in float64."""
    factor, failed = torch.linalg.cholesky_ex(G + ridge * torch.eye(len(G), dtype=G.dtype, device=G.device))
    return None if bool(failed) else torch.cholesky_solve(C, factor)


KINDS = {"linear": Serving, "zero_shot": Serving, "refit": Refit, "ncm": Means, "ridge": Ridge}


def serving_of(
    protocol: ProtocolConfig, dim: int, device: str, run_seed: int, scenario: Scenario = CLASS_INCREMENTAL
) -> Serving:
    """What the protocol asks for, before the first task; ``dim`` is the size D of a feature vector."""
    return KINDS[protocol.head.kind](protocol, dim, device, run_seed, scenario)
