"""Broken on purpose: whitens task vectors by a Cholesky factor, which full-rank ones have and LoRA's do not."""

from bench.method import Rule, Task, Weights, rule


@rule("broken_lora")
class Whitened(Rule):
    """The running average; logs the logarithm of the volume that each matrix's task vector spans."""

    def merge(self, task: Task) -> Weights:
        """Blend."""
        from torch.linalg import cholesky

        for name, tau in (task.trained - task.start).items():
            if tau.ndim == 2:
                tall = (tau if tau.shape[0] >= tau.shape[1] else tau.T).double()
                task.log(**{f"volume_{name}": float(cholesky(tall.T @ tall).diagonal().log().sum())})
        return task.served + (task.trained - task.served) / task.t
