"""One method under test, and how a check says what it found."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch

from bench.checks.world import Run, Track, World, Worlds, merges, run
from bench.method import Rule, Task
from bench.method.weights import Weights
from bench.registry.resolved import Method

Outcome = Literal["pass", "fail", "skip"]


class Failed(Exception):
    """A promise is broken; the message says how."""


class Skipped(Exception):
    """The promise is not made, or cannot be tried here; the message says why."""


@dataclass(frozen=True)
class Finding:
    """What one check found of one method."""

    method: str  #: how it was asked for
    variant: str  #: the full spelling of what was checked
    check: str
    outcome: Outcome
    reason: str  #: why it failed or was skipped; what else there is to say where it passed
    about: str  #: the promise
    seconds: float


@dataclass
class Subject:
    """One method under test."""

    method: Method
    worlds: Worlds
    _runs: dict[int, Run] = field(default_factory=dict)
    _alone: list[Weights] | None = None

    def rule(self) -> Rule:
        """A fresh instance."""
        return self.method.build()[1]

    def track(self, world: World | None = None, order: tuple[int, ...] = (0, 1, 2)) -> Track:
        """Task models trained plainly from theta_0, with the by-products that the rule asks for."""
        return (world or self.worlds.lora).track(self.rule().record, order)

    def equal(self) -> Track:
        """Three tasks whose training came out the same."""
        track = self.track()
        first = track.models[0]
        models = (replace(m, trained=first.trained, recorded=first.recorded) for m in track.models)
        return Track(track.stream, tuple(models))

    def served(self, track: Track, world: World | None = None, **options: Any) -> list[Weights]:
        """theta_hat_1..T of a fresh instance."""
        start = options.pop("start", self.method.start)
        return [w for _, w in merges(self.rule(), world or self.worlds.lora, track, start, **options)]

    def alone(self) -> list[Weights]:
        """theta_hat_1..3 of the three tasks in order, as nothing disturbs them."""
        if self._alone is None:
            self._alone = self.served(self.track())
        return self._alone

    def run(self, world: World | None = None) -> Run:
        """The real run of two tasks in that world."""
        world = world or self.worlds.lora
        if id(world) not in self._runs:
            self._runs[id(world)] = run(self.method, world)
        return self._runs[id(world)]


class ServeTrained(Rule):
    """theta*_t: stands in where a trainer is checked alone."""

    key = "serve_trained"

    def merge(self, task: Task) -> Weights:
        """What was trained."""
        return task.trained


# ---- comparisons -------------------------------------------------------------------------------------------------
def need_rule(subject: Subject) -> None:
    """Skip where a trainer is checked alone."""
    if subject.method.rule is ServeTrained:
        raise Skipped("a trainer alone")


def distance(got: Weights, expected: Weights, theta_0: Weights) -> float:
    """||got - expected|| in units of ||expected - theta_0||."""
    return (got - expected).norm() / max((expected - theta_0).norm(), 1e-30)


def finite(served: list[Weights], what: str) -> None:
    """No entry is infinite or not a number."""
    for t, weights in enumerate(served, 1):
        if not bool(torch.isfinite(weights.vector).all()):
            names = [n for n, v in weights.items() if not bool(torch.isfinite(v).all())]
            raise Failed(f"{what}: not finite after task {t}, in {names[0]} and {len(names) - 1} other tensors")


def same_bits(one: list[Weights], other: list[Weights], what: str) -> None:
    """Task by task."""
    for t, (a, b) in enumerate(zip(one, other, strict=True), 1):
        if a.digest() != b.digest():
            raise Failed(f"{what} at task {t} (largest difference {float((a - b).vector.abs().max()):.1e})")


def same_layout(served: list[Weights], theta_0: Weights, where: str) -> None:
    """Names, shapes, compute dtype and device are theta_0's, and all is finite."""
    for t, w in enumerate(served, 1):
        if w.layout != theta_0.layout or w.vector.shape != theta_0.vector.shape:
            raise Failed(f"{where}: names or shapes after task {t} are not theta_0's")
        if (w.vector.dtype, w.vector.device) != (theta_0.vector.dtype, theta_0.vector.device):
            raise Failed(f"{where}: {w.vector.dtype} after task {t}, theta_0 is {theta_0.vector.dtype}")
    finite(served, where)
