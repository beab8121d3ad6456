"""DARE, Drop And REscale (Yu et al., "Language Models are Super Mario", arXiv:2311.03099).

    tau~_i = m_i * tau_i / (1 - p),    m_i ~ Bernoulli(1 - p) entry by entry, so that E[tau~_i] = tau_i

and then a rule for task vectors (`then`):

    linear    theta_0 + lam sum_i tau~_i                 task arithmetic; carried as the running sum
    average   theta_0 + lam / t sum_i tau~_i             the same sum
    ties      theta_0 + lam TIES(tau~_1, ..., tau~_t)    keeps the trimmed tau~_i (T P)

What the paper leaves open, and our choice: p is the share that is DROPPED (0.5; its language models bear 0.9 and more,
small tau; with large ones, as long full fine-tuning gives, a high p breaks them). A mask is drawn once, from the stream
of (run, task, tensor's name), so that neither the order of tensors nor merging anew changes it. lam is 0.3 whatever
`then` is, as FusionBench has it for the sum; the named methods say what FusionBench has for the others, `dare_average`
lam 1 and `dare_ties` lam 0.5 with density 0.2 and sums, so a bare `dare:then=average` is 0.3 of that average. Trimming
keeps exactly max(1, round(density P)) entries.

mergekit restores the L1 norm of every tensor instead of dividing by 1 - p (`rescale=l1`), and differs in what it does
then: its dare_linear has lam 1 (`dare_mergekit:lam=1`), its dare_ties elects signs over the thinned vectors and trims
nothing by magnitude (close to it: `dare_ties:density=1,lam=1,rescale=l1`).

Published numbers: language models without heads, and BERT-like encoders on GLUE, a trained head a task, task id given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from bench.method import Task, TaskVectorRule, Weights, method, option, rule, state
from bench.method.tools.sparsify import draw, elect_and_merge, restore_norm, trim

if TYPE_CHECKING:
    from torch import Tensor


@rule("dare")
class Dare(TaskVectorRule):
    """Randomly thinned task vectors, added, averaged, or merged by TIES."""

    p: float = option(0.5, help="share of entries dropped", ge=0, lt=1, search=[0.1, 0.3, 0.5, 0.7, 0.9])
    then: Literal["linear", "average", "ties"] = option("linear", help="rule that merges what is left")
    lam: float = option(0.3, help="scale of the merged task vector", ge=0, search=(0.05, 1.5))
    density: float = option(0.2, help="share of entries that TIES keeps", gt=0, le=1)
    rescale: Literal["bernoulli", "l1"] = option("bernoulli", help="divide by 1 - p, or restore each tensor's L1 norm")
    kept: list[Weights] = state(list)  #: [sum of thinned task vectors], or every one trimmed (ties)

    def mask(self, task: Task, tau: Weights) -> Tensor:
        """True where an entry stays (P,)."""
        return draw(tau, 1 - self.p, lambda name: task.rng(f"dare {name}"))

    def thinned(self, task: Task) -> Weights:
        """tau~_t."""
        tau = self.tau(task)
        dropped = tau * self.mask(task, tau)
        if self.rescale == "bernoulli":
            return dropped / (1 - self.p)
        pairs = zip(dropped.items(), tau.tensors().values(), strict=True)
        return tau.with_tensors({name: restore_norm(after, before, "l1") for (name, after), before in pairs})

    def merge(self, task: Task) -> Weights:
        """Thin this task's vector and merge it with the others."""
        tau = self.thinned(task)
        if self.then == "ties":
            self.kept = [*self.kept, tau.map(lambda v: trim(v, max(1, round(self.density * v.numel()))))]
            merged = tau.map(lambda _: elect_and_merge([kept.vector for kept in self.kept], "sum"))
        else:
            self.kept = [sum(self.kept, tau)]
            merged = self.kept[0]
        return task.pretrained + merged * (self.lam / task.t if self.then == "average" else self.lam)


PAPER = "arXiv:2311.03099"
method("dare", "plain+dare@pretrained", title="DARE", paper=PAPER, about="drop half, rescale, add")
method("dare_average", "plain+dare@pretrained:then=average,lam=1", title="DARE, average", paper=PAPER, status="variant")
method("dare_ties", "plain+dare@pretrained:then=ties,lam=0.5", title="DARE-TIES", paper=PAPER)
method("dare_mergekit", "plain+dare@pretrained:rescale=l1", title="DARE (mergekit)", paper=PAPER, status="variant")
