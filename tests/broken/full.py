"""Broken on purpose: every tensor is taken for a matrix, which only LoRA's are."""

from bench.method import Rule, Task, Weights, rule


@rule("broken_full")
class Spectral(Rule):
    """The running average; logs the mean rank of task vectors."""

    def merge(self, task: Task) -> Weights:
        """Blend."""
        from torch.linalg import matrix_rank

        ranks = [int(matrix_rank(tau)) for _, tau in (task.trained - task.served).items()]
        task.log(rank=sum(ranks) / len(ranks))
        return task.served + (task.trained - task.served) / task.t
