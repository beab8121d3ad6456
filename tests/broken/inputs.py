"""Broken on purpose: the difference is taken in place, so theta*_t is no longer theta*_t."""

from bench.method import Rule, Task, Weights, rule


@rule("broken_inputs")
class InPlace(Rule):
    """The running average, one copy saved."""

    def merge(self, task: Task) -> Weights:
        """Blend."""
        D = task.trained
        D.vector.sub_(task.served.vector)
        return task.served + D / task.t
