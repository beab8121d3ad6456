"""Broken on purpose: a warm start that serves only half of the first task, while ``serves_first`` is claimed."""

from bench.method import Rule, Task, Weights, rule


@rule("broken_first_task")
class HalfAtFirst(Rule):
    """theta*_t, but half way to theta*_1 after the first task."""

    def merge(self, task: Task) -> Weights:
        """Half a step, then whole ones."""
        return (task.served + task.trained) / 2 if task.t == 1 else task.trained
