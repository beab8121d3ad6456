"""TIES-Merging (Yadav et al., arXiv:2306.01708).

Trim: of every task vector tau_i, all adapted tensors together, keep the ``density`` share of largest magnitude.
Elect: gamma = sign(sum_i tau_i), entry by entry. Merge: combine the entries that agree with gamma (``mean`` over those
that are not 0, ``sum``, or ``max`` magnitude).

    theta_hat_t = theta_0 + lam * TIES(tau_1, ..., tau_t)

The paper merges all tasks at once. On a stream `mode` says how:

    recompute          keeps the trimmed tau_1..tau_t (T P): the paper's rule, whatever the order of tasks
    fold               theta_0 + lam TIES(theta_hat_{t-1} - theta_0, tau_t), carries nothing; the order matters
    fold_fusionbench   theta_hat_{t-1} + lam TIES(theta_hat_{t-1} - theta_0, tau_t) and theta_hat_1 = theta_0 + lam
                       tau_1: FusionBench's continual TIES (opcm/ties_merging.py); the past counts twice

What the paper leaves open, and our choice: exactly max(1, round(density P)) entries stay, of equal ones the first;
density 1 trims nothing; where the trimmed values cancel, gamma is the sign of the sum of all elected signs, negative if
that is 0. References differ (`like`):

    fusionbench   also MagMax's copy: every entry as large as the (int(density P) + 1)-th largest stays
    mergekit      int(density n) entries of every tensor of n stay (at least 1), gamma is + where values cancel

Published presets: 20 % and sum with lam 0.3 (FusionBench, AdaMerging), mean with lam 0.55 (MagMax).

Published numbers: CLIP, a zero-shot head a task, task id given (8 tasks); T5, without heads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from bench.method import Task, TaskVectorRule, Weights, method, option, rule, state
from bench.method.tools.sparsify import Combine, elect_and_merge, trim

if TYPE_CHECKING:
    from torch import Tensor


@rule("ties")
class Ties(TaskVectorRule):
    """theta_0 + lam * TIES of the task vectors."""

    density: float = option(0.2, help="share of entries of a task vector that stay", gt=0, le=1, search=(0.05, 1.0))
    combine: Combine = option("mean", help="how entries that agree with the elected sign become one")
    lam: float = option(1.0, help="scale of the merged task vector", ge=0, search=(0.2, 2.0))
    mode: Literal["recompute", "fold", "fold_fusionbench"] = option("recompute", help="from all tasks, or from two")
    like: Literal["ours", "fusionbench", "mergekit"] = option("ours", help="whose count of entries and cancelled sign")
    kept: list[Weights] = state(list)  #: trimmed task vectors, mode recompute

    @property
    def order_invariant(self) -> bool:  # type: ignore[override]
        """Not when folded."""
        return self.mode == "recompute"

    def trimmed(self, tau: Weights) -> Weights:
        """tau with its largest entries, zero elsewhere."""
        if self.like == "mergekit":
            one = {n: trim(v.reshape(-1), max(1, int(self.density * v.numel()))) for n, v in tau.items()}
            return tau.with_tensors(one)
        if self.like == "fusionbench":
            return tau.map(lambda v: trim(v, int(self.density * v.numel()) + 1, ties=True))
        return tau.map(lambda v: trim(v, max(1, round(self.density * v.numel()))))

    def merged(self, trimmed: list[Weights]) -> Weights:
        """The elected and combined task vector."""

        def merge(_: Tensor) -> Tensor:
            cancelled: Literal["positive", "majority"] = "positive" if self.like == "mergekit" else "majority"
            return elect_and_merge([tau.vector for tau in trimmed], self.combine, cancelled)

        return trimmed[0].map(merge)

    def merge(self, task: Task) -> Weights:
        """TIES of all task vectors, or of the pair of what was served and the new one."""
        tau = self.tau(task)
        if self.mode == "recompute":
            self.kept = [*self.kept, self.trimmed(tau)]
            return task.pretrained + self.merged(self.kept) * self.lam
        if self.mode == "fold_fusionbench" and task.t == 1:
            return task.pretrained + tau * self.lam
        origin = task.pretrained if self.mode == "fold" else task.served
        pair = [self.trimmed(task.served - task.pretrained), self.trimmed(tau)]
        return origin + self.merged(pair) * self.lam


PAPER = "arXiv:2306.01708"
method("ties", "plain+ties@pretrained", title="TIES", paper=PAPER, about="trim, elect sign, merge")
method(
    "ties_fb",
    "plain+ties@pretrained:combine=sum,lam=0.3,like=fusionbench",
    title="TIES (FusionBench)",
    paper=PAPER,
    status="variant",
)
method(
    "ties_magmax",
    "plain+ties@pretrained:lam=0.55,like=fusionbench",
    title="TIES (MagMax's preset)",
    paper=PAPER,
    status="variant",
)
method("ties_mergekit", "plain+ties@pretrained:like=mergekit", title="TIES (mergekit)", paper=PAPER, status="variant")
method("ties_fold", "plain+ties@pretrained:mode=fold", title="TIES, folded", paper=PAPER, status="variant")
method(
    "ties_fb_continual",
    "plain+ties@pretrained:combine=sum,lam=0.5,mode=fold_fusionbench,like=fusionbench",
    title="TIES, folded (FusionBench)",
    paper=PAPER,
    status="variant",
)
