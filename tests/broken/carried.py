"""Broken on purpose: the last task model is kept in a plain attribute, so its bytes are not counted."""

from bench.method import Rule, Task, Weights, rule


@rule("broken_carried")
class Hoarder(Rule):
    """The running average; keeps theta*_{t-1} to log how far the task models are apart."""

    def merge(self, task: Task) -> Weights:
        """Blend and remember."""
        task.log(apart=(task.trained - getattr(self, "last", task.pretrained)).norm())
        self.last = task.trained
        return task.served + (task.trained - task.served) / task.t
