"""``ridge``: ridge regression on random features (RanPAC, arXiv:2307.02251)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot, pad

from bench.common.seeds import torch_rng
from bench.config.schema import ProtocolConfig
from bench.data.scenario import CLASS_INCREMENTAL, Scenario
from bench.data.stream import TaskData
from bench.method.weights import Weights
from bench.model.heads import Head
from bench.run.classifiers.serving import Classifier, Features, Serving

RIDGES = [10.0**power for power in range(-8, 9)]  #: RanPAC's candidates
BLOCK = 1000  #: columns of G at a time


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
    """(G + lambda I)^-1 C with G = sum h h^T and C = sum h y^T over all tasks, h and y one-hot.

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
        x, columns = torch.cat([p[0] for p in pairs]), torch.cat([p[1] for p in pairs])
        y = one_hot(columns, tasks[-1].columns.stop).double()
        rng = torch_rng("ridge", self.run_seed, *(task.content for task in tasks))
        order = torch.randperm(len(x), generator=rng).to(x.device)
        parts = order.split(max(1, math.ceil(0.8 * len(x))))  # one image leaves nothing to choose on
        fixed, own = self.protocol.head.ridge, slice(tasks[0].columns.start, tasks[-1].columns.stop)
        least = fixed or self._choose(*((x[part], y[part, own]) for part in (parts[0], parts[-1])))
        self._C = pad(self._C, (0, y.shape[1] - self._C.shape[1]))
        for part in parts:
            self._add(x[part], y[part], self._G, self._C)
        # What is positive definite for one task may not be for the sum of all: then the next larger candidate.
        candidates = [fixed] if fixed else [ridge for ridge in RIDGES if ridge >= least]
        for ridge in candidates:
            weight = _solve(self._G, self._C, ridge)
            if weight is not None:
                self._weight = weight
                return {"head_ridge": ridge}
        raise FloatingPointError(f"head.ridge {least:g} is too small for {len(self._G)} random features; raise it")

    def _hidden(self, x: Tensor) -> Tensor:
        """(n, M) of features (n, D)."""
        return torch.relu(x.double() @ self._projection)

    def _batches(self, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
        yield from zip(*(x.split(self.protocol.eval_batch) for x in tensors), strict=True)

    def _add(self, x: Tensor, y: Tensor, G: Tensor, C: Tensor) -> None:
        """These images' h h^T to G (M, M), of which blocks above the diagonal stay 0, and h y^T to C (M, classes)."""
        for rows, targets in self._batches(x, y):
            h = self._hidden(rows)
            for left in range(0, len(G), BLOCK):  # half the cost of a whole product
                columns = slice(left, left + BLOCK)
                G[left:, columns].addmm_(h[:, left:].T, h[:, columns])
            C.addmm_(h.T, targets)

    def _choose(self, fitted: tuple[Tensor, Tensor], rest: tuple[Tensor, Tensor]) -> float:
        """The candidate whose solution on ``fitted`` errs least on ``rest``, both (n, D) and targets (n, c)."""
        solutions = [(ridge, weight) for ridge, weight in self._solutions(*fitted) if weight is not None]
        if not solutions:
            return max(RIDGES)
        weights = torch.cat([weight for _, weight in solutions], dim=1)
        errors = weights.new_zeros(len(solutions))
        for x, y in self._batches(*rest):
            answers = (self._hidden(x) @ weights).unflatten(1, (len(solutions), -1))
            errors += (answers - y[:, None]).square().sum((0, 2))
        return solutions[int(errors.argmin())][0]

    def _solutions(self, x: Tensor, y: Tensor) -> Iterator[tuple[float, Tensor | None]]:
        """By candidate, (h^T h + lambda I)^-1 h^T y (M, c), None where float64 does not reach.

        With fewer images than random features it is h^T (h h^T + lambda I)^-1 y, the same with a smaller matrix.
        """
        if len(x) < len(self._G):
            h = self._hidden(x)
            kernel = h @ h.T
            for ridge in RIDGES:
                dual = _solve(kernel, y, ridge)
                yield ridge, None if dual is None else h.T @ dual
        else:
            G, C = torch.zeros_like(self._G), self._G.new_zeros(len(self._G), y.shape[1])
            self._add(x, y, G, C)
            for ridge in RIDGES:
                yield ridge, _solve(G, C, ridge)

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
    """(G + ridge I)^-1 C by Cholesky, or None where that is not positive definite in float64. Reads G's lower half."""
    factor, failed = G.clone(), torch.empty((), dtype=torch.int32, device=G.device)
    factor.diagonal().add_(ridge)
    torch.linalg.cholesky_ex(factor, out=(factor, failed))  # in place: G may be 800 MB
    return None if bool(failed) else torch.cholesky_solve(C, factor)
