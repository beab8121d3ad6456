"""Broken on purpose: a mask is drawn from torch's global generator, so equal seeds give other bits."""

from bench.method import Task, TaskVectorRule, Weights, rule


@rule("broken_seed")
class Dropped(TaskVectorRule):
    """theta_hat_{t-1} + mask * tau_t / 2."""

    def merge(self, task: Task) -> Weights:
        """Drop half of the entries."""
        import torch

        return task.served + self.tau(task).map(lambda v: v * torch.randint(0, 2, v.shape).to(v)) / 2
