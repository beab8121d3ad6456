"""Broken on purpose: the counter is no state(), so a resumed run begins to count anew."""

from bench.method import Rule, Task, Weights, rule


@rule("broken_resume")
class Counting(Rule):
    """The running average, with a counter of its own."""

    def begin(self, pretrained: Weights) -> None:
        """Count from 0."""
        super().begin(pretrained)
        self.count = 0

    def merge(self, task: Task) -> Weights:
        """Count, then blend."""
        self.count += 1
        return task.served + (task.trained - task.served) / self.count
