"""Broken on purpose: the new head is shrunk in place, so what is evaluated is not what was trained."""

from typing import Any

from bench.method import Trainer, trainer


@trainer("broken_evaluation")
class Modest(Trainer):
    """Plain training; then the head is scaled down so that it does not drown the old ones."""

    def learnt(self, task: Any) -> None:
        """Reach behind the interface."""
        task.heads[-1].weight.mul_(0.5)
