"""Broken on purpose: a mean over the tasks so far, which is 0 / 0 before the first one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.method import Task, Trainer, Weights, state, trainer

if TYPE_CHECKING:
    from torch import Tensor


@trainer("broken_penalty")
class Offset(Trainer):
    """Adds how far tasks moved on average (a constant: it changes the loss that is logged)."""

    moved: float = state(0.0)
    tasks: int = state(0)

    def penalty(self, theta: Weights) -> Tensor:
        """The mean so far."""
        return theta.vector.new_tensor(self.moved) / self.tasks

    def learnt(self, task: Task) -> None:
        """One more task."""
        self.moved, self.tasks = self.moved + (task.trained - task.start).norm(), self.tasks + 1
