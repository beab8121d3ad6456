"""Broken on purpose: a tensor is made on the CPU wherever the weights are."""

from bench.method import Rule, Task, Weights, rule


@rule("broken_device")
class AtHome(Rule):
    """The running average, with a vector of coefficients."""

    def merge(self, task: Task) -> Weights:
        """Blend."""
        import torch

        share = torch.full(task.served.vector.shape, 1 / task.t)
        return task.served + (task.trained - task.served) * share
