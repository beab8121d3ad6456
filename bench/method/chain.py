"""The loop over a stream of tasks, once: what theta_0 is, where training of task t begins, what is served after it.

A run, ``clmerge merge``, ``clmerge replay`` and ``clmerge check`` drive it; they differ in where theta*_t and the
statistics come from. Torch-free at the top: plans name what is trained by the same :func:`begins`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from bench.method.api import Rule, Start, Trainer
from bench.method.protect import unchanged
from bench.method.weights import Weights

T = TypeVar("T")
Seen = TypeVar("Seen")  #: the task as the rule sees it


def begins(start: Start, pretrained: T, previous: T, merged: T) -> T:
    """Where training of a task begins: theta_0, theta*_{t-1} or theta_hat_{t-1} (or what stands for them)."""
    return {"pretrained": pretrained, "previous": previous, "merged": merged}[start]


def handed(task: Any) -> dict[str, Weights]:
    """Every vector of weights that a plugin is handed with a task, by its name."""
    held = {f"task.{name}": getattr(task, name) for name in ("served", "trained", "start", "pretrained")}
    by_products = ((kind, i, w) for kind, copies in task.recorded.items() for i, w in enumerate(copies))
    return held | {f"task.recorded[{kind!r}][{i}]": weights for kind, i, weights in by_products}


class Chain:
    """theta_0, theta*_{t-1} and theta_hat_{t-1} of one rule on its way through a stream.

    Attributes:
        served: theta_hat of the last task; theta_0 at first.
        previous: theta*_t of the last task where the start asks for it, else theta_0.
        seconds: what the rule and the trainer took after the last task.
    """

    def __init__(self, rule: Rule, start: Start, pretrained: Weights, trainer: Trainer | None = None) -> None:
        self.rule, self.start, self.trainer = rule, start, trainer
        self.pretrained = self.served = self.previous = pretrained
        self.seconds = 0.0
        for plugin in (trainer, rule):
            if plugin is not None:
                plugin.begin(pretrained)

    def tasks(self, models: Iterable[T], task_of: Callable[[T, Weights], Seen]) -> Iterator[Seen]:
        """Each task after it was merged, so that ``served`` is theta_hat_t; asked for one at a time.

        Args:
            models: whatever ``task_of`` makes a task from, in the order of the stream.
            task_of: gives the Task that the rule sees, from that and from where training begins.

        Raises:
            FloatingPointError: the rule served weights that are not finite.
            ChangedInPlaceError: a plugin wrote into what it was handed.
        """
        for model in models:
            task: Any = task_of(model, begins(self.start, self.pretrained, self.previous, self.served))
            del model  # the next one is asked for when nothing of this one is left
            self.served = self.merge(task)
            if self.start == "previous":
                self.previous = task.trained
            yield task
            del task

    def merge(self, task: Any) -> Weights:
        """theta_hat_t: the rule's answer, without a graph and in memory that the rule does not keep."""
        from bench.method.carried import pack

        with unchanged(f"rule {self.rule.key}", handed(task)):
            began = time.perf_counter()
            served = self.ask(task)
            self.seconds = time.perf_counter() - began
        kept = {tensor.untyped_storage().data_ptr() for tensor in pack(self.rule)[0].values()}
        if served.vector.requires_grad or served.vector.untyped_storage().data_ptr() in kept:
            served = served.detach()
        if self.trainer is not None:
            with unchanged(f"trainer {self.trainer.key}", handed(task) | {"what is served": served}):
                began = time.perf_counter()
                self.trainer.learnt(task.for_trainer())
                self.seconds += time.perf_counter() - began
        check_finite(self.rule, served, task.t)
        return served

    def ask(self, task: Any) -> Weights:
        """What the rule's ``merge`` gives.

        Raises:
            TypeError: not Weights.
        """
        served = self.rule.merge(task)
        if not isinstance(served, Weights):
            raise TypeError(f"rule {self.rule.key}: merge gives a {type(served).__name__}, not Weights")
        return served


def check_finite(rule: Rule, served: Weights, t: int) -> None:
    """One pass, no copy.

    Raises:
        FloatingPointError: which rule, after which task.
    """
    import torch

    if not bool(torch.isfinite(served.vector.sum(dtype=torch.float64))):
        raise FloatingPointError(f"rule {rule.key} served non-finite weights after task {t}")
