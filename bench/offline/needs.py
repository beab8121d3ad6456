"""What a rule will ask for, found by two tasks of six numbers each, before gigabytes are read for nothing."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from bench.common.errors import UserError
from bench.method import Gram
from bench.method.recorded import RecordedTask
from bench.method.weights import Weights
from bench.registry.resolved import Method


@dataclass
class _Rehearsal(RecordedTask):
    """Notes what the rule asks for, and gives what can be made up."""

    reads: set[str] = field(default_factory=set)

    def fisher(self, kind: str = "empirical", at: Weights | None = None) -> Weights:
        self.reads.add(f"fisher {kind}" if at is None else "fisher elsewhere")
        return self.trained**2

    def gram(self, samples: int) -> dict[str, Gram]:
        self.reads.add("gram")
        return {"w": Gram(torch.eye(2, dtype=torch.float64), 2)}

    def _no_images(self) -> UserError:
        self.reads.add("images")
        return super()._no_images()


def reads(method: Method) -> set[str]:
    """Of ``"fisher <kind>"``, ``"fisher elsewhere"`` (at other weights than theta*_t), ``"gram"``, ``"images"``,
    ``"grad_sq"`` and ``"snapshots"``, what the rule reads with these options.
    """
    _, rule = method.build()
    found = {name.partition(":")[0] for name in rule.record}
    w = Weights.of({"w": torch.tensor([[1.0, 2.0], [3.0, 5.0]], dtype=torch.float64), "b": torch.ones(2).double()})
    theta_0 = served = w.zeros()
    rule.begin(theta_0)
    for t in (1, 2):
        task = _Rehearsal(t, theta_0, theta_0, served, w * t, {"grad_sq": [w]}, reads=found)
        try:
            served = rule.merge(task)
        except Exception:  # what is wrong beyond that will be said of the real tensors
            break
    return found
