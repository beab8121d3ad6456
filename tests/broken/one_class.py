"""Broken on purpose: an entropy in units of log(classes), which is 0 / 0 where a task has one class."""

from bench.method import Rule, Task, Weights, rule


@rule("broken_one_class")
class Confident(Rule):
    """A step of 1/t, shortened where the new model is uncertain about its own task."""

    data, serves_first = "unlabelled", False

    @property
    def needs(self) -> tuple[str, ...]:
        """Declared as it should be."""
        return ("images",)

    def merge(self, task: Task) -> Weights:
        """Measure on one batch, then blend."""
        import torch

        [(x, _)] = task.batches(16, steps=1)
        with torch.no_grad():
            p = torch.softmax(task.logits(task.trained, x), -1)
        entropy = -(p * p.clamp_min(1e-12).log()).sum(1).mean() / torch.log(torch.tensor(float(p.shape[1])))
        return task.served + (task.trained - task.served) * (1 - entropy) / task.t
