"""Broken on purpose: a Fisher of true labels is taken, and no data is declared."""

from bench.method import Rule, Task, Weights, rule


@rule("broken_data")
class Peeking(Rule):
    """The running average, scaled down where the new task's Fisher is large."""

    @property
    def needs(self) -> tuple[str, ...]:
        """It says what it reads, but not of which data."""
        return ("fisher:empirical",)

    def merge(self, task: Task) -> Weights:
        """Blend."""
        F = task.fisher("empirical")
        task.log(trace=float(F.sum()))
        return task.served + (task.trained - task.served) / task.t
