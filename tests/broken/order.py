"""Broken on purpose: each step takes the middle, so the last task weighs most; yet ``order_invariant`` is claimed."""

from bench.method import Rule, Task, Weights, rule


@rule("broken_order")
class Middle(Rule):
    """(theta_hat_{t-1} + theta*_t) / 2."""

    order_invariant = True

    def merge(self, task: Task) -> Weights:
        """The middle."""
        return task.trained if task.t == 1 else (task.served + task.trained) / 2
