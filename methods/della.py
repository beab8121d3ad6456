"""DELLA-Merging, Reducing Interference in Model Merging through Magnitude-Based Sampling (Deep et al.,
arXiv:2406.11617).

    drop     the entry of rank r (0 the smallest) among the n of a row stays with probability
             q = 1 - p + window (r / (n - 1) - 1/2), and is divided by q
    elect    gamma = the sign of sum_i tau~_i, entry by entry
    fuse     theta_hat_t = theta_0 + lam (the mean of the tau~_i that agree with gamma and were not dropped)

`then=linear` leaves the election out: theta_0 + lam sum_i tau~_i (mergekit's della_linear); its running sum is all that
is carried (P). The election needs all tau~_i (T P).

What the paper leaves open, and our choice: p 0.3, window 0.14 and lam 1.1, the example of the authors' code
(declare-lab/della), where window is called window_size and halved; a vector is one row, a convolution has a row an
output, a row of one entry has q = 1 - p; q is cut off at 0 and 1; where the kept values cancel, gamma is + as in that
code. An entry's draw is from the stream of (run, task, tensor's name). mergekit restores the L1 norm of every tensor
instead of dividing by q (`rescale=l1`).

Published numbers: language models of 13 billion parameters, no heads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from bench.method import Task, TaskVectorRule, Weights, method, option, rule, state
from bench.method.tools.sparsify import draw, elect_and_merge, restore_norm

if TYPE_CHECKING:
    from torch import Tensor


@rule("della")
class Della(TaskVectorRule):
    """Task vectors thinned out by rank of magnitude, then elected and fused, or added."""

    p: float = option(0.3, help="share of entries dropped", ge=0, lt=1, search=[0.1, 0.3, 0.5, 0.7, 0.9])
    window: float = option(0.14, help="how much likelier a row's largest entry stays than its smallest", ge=0, lt=1)
    lam: float = option(1.1, help="scale of the merged task vector", ge=0, search=(0.05, 2.0))
    then: Literal["elect", "linear"] = option("elect", help="mean of the entries that agree in sign, or the sum of all")
    rescale: Literal["probability", "l1"] = option("probability", help="divide by q, or restore each tensor's L1 norm")
    kept: list[Weights] = state(list)  #: every thinned task vector, or [their sum] (linear)

    def merge(self, task: Task) -> Weights:
        """Thin tau_t and merge it with the others."""
        thinned = self.thinned(task)
        if self.then == "linear":
            self.kept = [sum(self.kept, thinned)]
            return task.pretrained + self.kept[0] * self.lam
        self.kept = [*self.kept, thinned]
        fused = thinned.map(lambda _: elect_and_merge([tau.vector for tau in self.kept], "mean", "positive"))
        return task.pretrained + fused * self.lam

    def thinned(self, task: Task) -> Weights:
        """tau~_t."""
        tau = self.tau(task)
        q = tau.with_tensors({name: self.stays(x) for name, x in tau.items()})
        kept = tau * draw(tau, q, lambda name: task.rng(f"della {name}"))
        if self.rescale == "probability":
            return kept / q.map(lambda v: v.where(v > 0, 1))
        pairs = zip(kept.items(), tau.tensors().values(), strict=True)
        return tau.with_tensors({name: restore_norm(after, before, "l1") for (name, after), before in pairs})

    def stays(self, x: Tensor) -> Tensor:
        """q of every entry of a tensor, in its shape."""
        import torch

        rows = x.reshape(len(x) if x.dim() > 1 else 1, -1)
        n = rows.shape[1]
        rank = rows.abs().argsort(dim=1, stable=True).argsort(dim=1).to(x)
        relative = rank / (n - 1) - 0.5 if n > 1 else torch.zeros_like(rows)
        return (1 - self.p + self.window * relative).clamp(0, 1).view(x.shape)


PAPER = "arXiv:2406.11617"
method("della", "plain+della@pretrained", title="DELLA", paper=PAPER, about="drop by rank of magnitude, elect sign")
method(
    "della_linear",
    "plain+della@pretrained:then=linear,lam=0.3",
    title="DELLA, linear",
    paper=PAPER,
    status="variant",
    about="drop by rank of magnitude, add",
)
