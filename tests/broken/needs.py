"""Broken on purpose: a Fisher is read that `needs` does not declare, so `clmerge merge` cannot ask for it."""

from bench.method import Rule, Task, Weights, rule


@rule("broken_needs")
class Silent(Rule):
    """The running average; the Fisher's trace is logged."""

    data = "unlabelled"

    def merge(self, task: Task) -> Weights:
        """Blend."""
        task.log(trace=float(task.fisher("exact").sum()))
        return task.served + (task.trained - task.served) / task.t
