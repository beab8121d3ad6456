"""Broken on purpose: tasks are counted in the module, so two runs in one process count each other's."""

from bench.method import Rule, Task, Weights, rule

COUNT = [0]


@rule("broken_streams")
class Counting(Rule):
    """The running average, with a counter of its own."""

    def merge(self, task: Task) -> Weights:
        """Count, then blend."""
        COUNT[0] = 1 if task.t == 1 else COUNT[0] + 1
        return task.served + (task.trained - task.served) / COUNT[0]
