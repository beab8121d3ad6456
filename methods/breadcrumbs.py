"""Model Breadcrumbs, Scaling Multi-Task Model Merging with Sparse Masks (Davari & Belilovsky, arXiv:2312.06795).

Of every tensor of a task vector both tails are dropped, the share gamma of largest magnitude (outliers) and the share
beta of smallest (negligible perturbations), and what is left is added up:

    theta_hat_t = theta_0 + lam sum_i m_i^{beta, gamma} tau_i

The running sum is all it carries (P). The paper writes its masks as percentiles: its gamma = 99.3 % is 0.007 here.

What the paper leaves open, and our choice: a layer is an adapted tensor; round(gamma n) and round(beta n) entries of
its n are dropped, but one at least stays; of equal magnitudes the first count as larger. The authors' code
(rezazzr/breadcrumbs, src/task_vectors.py) ranks within every row of a tensor, takes the largest out first and then
keeps a share of the row (`scope=row`); it has no defaults for the shares. Ours: beta 0.85, gamma 0.007, lam 0.3.
mergekit states the share that stays (density = 1 - beta - gamma), by tensor.

Published numbers: CLIP, 8 tasks, a zero-shot head a task, task id given; T5 on GLUE.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from bench.method import Task, TaskVectorRule, Weights, method, option, rule, state
from bench.method.tools.sparsify import trim

if TYPE_CHECKING:
    from torch import Tensor


@rule("breadcrumbs")
class Breadcrumbs(TaskVectorRule):
    """theta_0 + lam * the sum of task vectors without their tails."""

    order_invariant = True
    beta: float = option(0.85, help="share of a tensor's smallest entries dropped", ge=0, lt=1, search=[0.5, 0.7, 0.85])
    gamma: float = option(0.007, help="share of a tensor's largest entries dropped", ge=0, lt=1)
    lam: float = option(0.3, help="scale of the sum", ge=0, search=(0.05, 1.5))
    scope: Literal["tensor", "row"] = option("tensor", help="entries are ranked in each tensor, or in each of its rows")
    total: Weights = state()

    def merge(self, task: Task) -> Weights:
        """Drop the tails of tau_t and add it."""
        tau = self.tau(task)
        self.total = self.total + tau.with_tensors({name: self.middle(x) for name, x in tau.items()})
        return task.pretrained + self.total * self.lam

    def middle(self, x: Tensor) -> Tensor:
        """The tensor (any shape) without its tails, 0 there."""
        import torch

        if self.scope == "row" and x.dim() > 1:
            return torch.stack([self._middle(row) for row in x.flatten(0, -2)]).view(x.shape)
        return self._middle(x.reshape(-1)).view(x.shape)

    def _middle(self, x: Tensor) -> Tensor:
        n = x.numel()
        largest = min(round(self.gamma * n), n - 1)
        return trim(x - trim(x, largest), max(1, n - largest - round(self.beta * n)))


method(
    "breadcrumbs",
    "plain+breadcrumbs@pretrained",
    title="Breadcrumbs",
    paper="arXiv:2312.06795",
    about="task arithmetic without the largest and smallest entries",
)
