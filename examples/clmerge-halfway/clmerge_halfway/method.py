"""Half of what was served, half of what was just trained."""

from __future__ import annotations

from bench.method import Rule, Task, Weights, method, rule


@rule("midpoint")
class Midpoint(Rule):
    """theta_hat_t = (theta_hat_{t-1} + theta*_t) / 2, and theta*_1 after the first task."""

    def merge(self, task: Task) -> Weights:
        """The midpoint of the segment between what was served and what was trained."""
        return task.trained if task.t == 1 else (task.served + task.trained) / 2


method("halfway", "midpoint@merged", title="Halfway", status="variant", about="the same share for every new task")
