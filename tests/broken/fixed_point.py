"""Broken on purpose: task vectors are summed, so what two tasks agree on counts twice."""

from bench.method import Rule, Task, Weights, rule


@rule("broken_fixed_point")
class Sum(Rule):
    """theta_hat_{t-1} + theta*_t - theta_0."""

    def merge(self, task: Task) -> Weights:
        """Add."""
        return task.served + (task.trained - task.pretrained)
