"""A world without images: random models, a tiny differentiable one in float64, and files of reference numbers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

from bench.common.files import load_tensors, save_tensors
from bench.method import Gram, Plugin, Rule
from bench.method.carried import pack, unpack
from bench.method.recorded import RecordedTask
from bench.method.weights import Weights
from bench.registry import Registry

REGISTRY = Registry.load()
SHAPES = {"a": (6, 5), "b": (5, 4), "c": (4,)}
seeds = st.integers(0, 2**31)
property_test = settings(max_examples=30, deadline=None)  # made before conftest loads its profile


def rule(key: str, **options: Any) -> Rule:
    return REGISTRY.rules[key](**options)


def trainer(key: str, **options: Any) -> Any:
    return REGISTRY.trainers[key](**options)


def reloaded(plugin: Plugin, folder: Path) -> Any:
    """A fresh plugin with the memory of this one, through the file that a resumed run reads."""
    tensors, tree = pack(plugin)
    save_tensors(folder / "memory.safetensors", tensors, {"tree": tree})
    kept = load_tensors(folder / "memory.safetensors")
    assert kept is not None
    fresh = type(plugin)(**{name: getattr(plugin, name) for name in plugin.options()})
    fresh.begin(plugin.pretrained)
    unpack(fresh, kept[0], kept[1]["tree"], plugin.pretrained)
    return fresh


def noise(seed: int, scale: float = 1.0, dtype: torch.dtype = torch.float64) -> Weights:
    generator = torch.Generator().manual_seed(seed)
    tensors = {n: scale * torch.randn(s, generator=generator, dtype=torch.float64) for n, s in SHAPES.items()}
    return Weights.of({n: t.to(dtype) for n, t in tensors.items()})


class Toy(RecordedTask):
    """features = tanh(x a) b + c; every task's head has four classes."""

    def logits(self, weights: Weights, x: Tensor, heads: str | int = "current") -> Tensor:
        w = weights.tensors()
        features = torch.tanh(x @ w["a"].double()) @ w["b"].double() + w["c"].double()
        chosen = {"current": [self.t], "old": range(1, self.t), "seen": range(1, self.t + 1), "fresh": [0]}
        return features @ torch.cat([self._head(i) for i in ([heads] if isinstance(heads, int) else chosen[heads])]).T

    def _head(self, i: int) -> Tensor:
        return torch.randn(4, 4, generator=torch.Generator().manual_seed(7 + i), dtype=torch.float64)

    def batches(self, size: int, steps: int, labelled: bool = False) -> Iterator[tuple[Tensor, Tensor | None]]:
        for step in range(steps):
            generator = torch.Generator().manual_seed(step)
            x = torch.randn(size, 6, generator=generator, dtype=torch.float64)
            yield x, torch.randint(4, (size,), generator=generator) if labelled else None

    def columns(self, t: int) -> range:
        return range(4 * t - 4, 4 * t)

    def validation(self, size: int, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
        for step in range(steps):
            generator = torch.Generator().manual_seed(99 + step)
            x = torch.randn(size, 6, generator=generator, dtype=torch.float64)
            yield x, torch.randint(4 * self.t, (size,), generator=generator)

    def accuracy(self, weights: Weights) -> float:
        """Best at 0.3 of the way from what was served to what was trained."""
        return -(weights - self.served - (self.trained - self.served) * 0.3).norm()


@dataclass
class Models:
    theta_0: Weights
    thetas: list[Weights]
    fishers: list[Weights]

    @classmethod
    def draw(cls, seed: int, T: int = 4, dtype: torch.dtype = torch.float64) -> Models:
        theta_0 = noise(seed, dtype=dtype)
        thetas = [theta_0 + noise(seed + i, 0.3, dtype) for i in range(1, T + 1)]
        return cls(theta_0, thetas, [noise(seed + 100 + i, 1.0, dtype) ** 2 for i in range(T)])

    def task(self, t: int, served: Weights, start: Weights | None = None) -> Toy:
        theta = self.thetas[t - 1]
        steps = [served + (theta - served) * f + noise(2**32 - 10 * t - i, 0.02).map(lambda v: v.to(theta.vector))
                 for i, f in enumerate((0.2, 0.5, 0.8))]  # fmt: skip
        F = self.fishers[t - 1]
        grams = self.grams(t)
        statistics = {"fisher": F, "fisher@elsewhere": F, "gram": grams, "gram@elsewhere": grams}
        return Toy(t, self.theta_0, start or served, served, theta, {"snapshots": [*steps, theta], "grad_sq": [F]},
                   statistics)  # fmt: skip

    def grams(self, t: int) -> dict[str, Gram]:
        """Of 40 rows for the two matrices; they are (d_out, d_in) to rules."""
        generator = torch.Generator().manual_seed(1000 + t)
        x = {n: torch.randn(40, SHAPES[n][1], generator=generator, dtype=torch.float64) for n in ("a", "b")}
        return {n: Gram(v.T @ v, 40) for n, v in x.items()}


def chain(
    rule: Rule, models: Models, start: str = "merged", between: Callable[[Any], Any] = lambda rule: rule
) -> list[Weights]:
    """theta_hat_1..T, with ``between`` applied to the rule at each task boundary."""
    rule.begin(models.theta_0)
    served, previous, out = models.theta_0, models.theta_0, []
    for t, theta in enumerate(models.thetas, 1):
        begin = {"pretrained": models.theta_0, "previous": previous, "merged": served}[start]
        served, previous = rule.merge(models.task(t, served, begin)).detach(), theta
        out.append(served)
        rule = between(rule)
    return out


def close(got: Weights, expected: Weights, rtol: float = 1e-12) -> bool:
    return (got - expected).norm() <= rtol * max(1e-300, expected.norm())


class Golden:
    """One file of inputs and the outputs of reference code (or of a formula computed naively)."""

    def __init__(self, name: str) -> None:
        data = dict(np.load(Path(__file__).parent.parent / "goldens" / f"{name}.npz"))
        self.meta = json.loads(str(data.pop("meta")))
        self._data, self.name, self.worst = data, name, 0.0

    def part(self, prefix: str) -> Weights:
        inside = {k[len(prefix) + 1 :]: v for k, v in self._data.items() if k.startswith(prefix + "/")}
        return Weights.of({k: torch.from_numpy(v) for k, v in inside.items()})

    def parts(self, prefix: str) -> list[Weights]:
        return [self.part(f"{prefix}/{i}") for i in range(self.meta["hparams"]["T"])]

    def array(self, name: str) -> np.ndarray:
        return self._data[name]

    def check(self, got: Weights | Any, expected: Weights | np.ndarray) -> None:
        pair = [w.vector.numpy() if isinstance(w, Weights) else np.asarray(w) for w in (got, expected)]
        assert pair[0].dtype == np.float64
        self.worst = max(self.worst, float(np.abs(pair[0] - pair[1]).max()))
        np.testing.assert_allclose(*pair, **self.meta["tolerance"])
