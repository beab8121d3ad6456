"""Consensus Merging with TALL-masks (Wang et al., "Localizing Task Information for Improved Model Merging and
Compression", arXiv:2405.07813).

An entry is used by task i where its own change is large beside what the other tasks add to it:

    m_i = 1 { |tau_i| > lambda |sum_j tau_j - tau_i| },    theta_hat_t = theta_0 + lam 1 { sum_i m_i >= k } sum_i tau_i

so that entries which no task uses (catastrophic) or a single one (selfish, k = 2) return to theta_0. All tau_i are
carried (T P): every task changes the sum that the masks of all others are measured by.

What the paper leaves open, and our choice: lambda is one number for all tasks (0.4, the middle of the authors' grid;
they choose it for each task from 0.2, 0.3, ... 0.6 by validation accuracy, and lam as well); lam 0.3, that of task
arithmetic; k is at most t, since of one task alone nothing would be left. Everything over all adapted tensors, entry by
entry, sums in float64. The authors (nik-dim/tall_masks) also mask a TIES vector, which is not here; FusionBench's
tall_mask keeps a mask a task instead, and so serves another model for every task.

Published numbers: CLIP, 8 to 20 tasks, a zero-shot head a task, task id given.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bench.method import Task, TaskVectorRule, Weights, method, option, rule, state
from bench.method.tools.sparsify import BLOCK

if TYPE_CHECKING:
    from torch import Tensor


@rule("consensus")
class Consensus(TaskVectorRule):
    """Task arithmetic on the entries that at least k tasks use."""

    order_invariant = True
    lam: float = option(0.3, help="scale of the masked sum", ge=0, search=(0.05, 1.5))
    mask_lam: float = option(0.4, help="lambda: a higher one makes fewer entries used", gt=0, search=(0.1, 1.0))
    k: int = option(2, help="tasks that have to use an entry (all, as long as there are fewer)", ge=0)
    taus: list[Weights] = state(list)

    def merge(self, task: Task) -> Weights:
        """Add what enough tasks use."""
        import torch

        self.taus = [*self.taus, self.tau(task)]
        blocks = zip(*(tau.vector.split(BLOCK) for tau in self.taus), strict=True)
        agreed = self.taus[0].map(lambda _: torch.cat([self.agreed(parts) for parts in blocks]))
        task.log(kept=float((agreed.vector != 0).double().mean()))
        return task.pretrained + agreed * self.lam

    def agreed(self, taus: Sequence[Tensor]) -> Tensor:
        """The sum of task vectors (n,), with 0 where fewer than k use it: of a block, so that it stays in cache."""
        import torch

        total = torch.zeros_like(taus[0], dtype=torch.float64)
        for tau in taus:
            total += tau
        users = torch.zeros_like(total, dtype=torch.int32)
        for tau in taus:
            users += tau.abs() > self.mask_lam * (total - tau).abs()
        return (total * (users >= min(self.k, len(taus)))).to(taus[0])


method(
    "consensus",
    "plain+consensus@pretrained",
    title="Consensus TA",
    paper="arXiv:2405.07813",
    about="task arithmetic on entries that several tasks use",
)
