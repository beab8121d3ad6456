"""Broken on purpose: computed in float64, and left there."""

from bench.method import Rule, Task, Weights, method, rule


@rule("broken_layout")
class Wide(Rule):
    """The running average in float64."""

    def merge(self, task: Task) -> Weights:
        """Blend."""
        h, theta = (w.map(lambda v: v.double()) for w in (task.served, task.trained))
        return h + (theta - h) / task.t


method("broken_layout_alone", "plain+broken_layout@pretrained")
