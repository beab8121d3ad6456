"""PCB-Merging, Parameter Competition Balancing for Model Merging (Du et al., arXiv:2410.02396).

Over all adapted tensors together, of t tasks, entry by entry:

    intra-balancing    b_i = exp(t N(|tau_i|)^2),    N(x) = (x - min x) / (max x - min x)
    inter-balancing    c_i = tanh(tau_i sum_j tau_j)
    drop               s_i = N(max(b_i c_i, q_i)),   q_i: the (1 - ratio) quantile of b_i c_i
    rescale            theta_hat_t = theta_0 + lam sum_i s_i tau_i / sum_i s_i

in the order of the authors' code (duguodong7/pcb-merging, pcb-merging.py), which differs from the paper's text: the
paper writes a softmax over entries where the code has exp (its denominator cancels in N), and a softmax of tau_i tau_j
where the code has tanh. |tau_i| is first clamped to its 0.01 % and 99.99 % quantiles, here too. All tau_i are carried
(T P): each score depends on the sum.

What the paper leaves open, and our choice: ratio 0.1 (that function's default; its script takes 0.05) and lam 1.2
(that script's; they are searched on validation images, by task with an evolutionary strategy). In float64. A task
vector without a spread (entries of one magnitude, or scores that are all equal) has s_i = 0; the code divides 0 by 0.

Published numbers: CLIP, 8 tasks, a zero-shot head a task, task id given; T5 and Llama 2, without heads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.method import Task, TaskVectorRule, Weights, method, option, rule, state

if TYPE_CHECKING:
    from torch import Tensor

OUTLIERS = 1e-4  #: share of entries at either end whose magnitude is clamped


def quantile(x: Tensor, rank: int) -> float:
    """The entry of x (P,) of that rank from below, 0 the smallest."""
    return float(x.kthvalue(min(max(rank, 0), x.numel() - 1) + 1).values)


def normalised(x: Tensor) -> Tensor:
    """x (P,) moved and scaled to [0, 1]; 0 where it has no spread."""
    low, high = x.min(), x.max()
    return (x - low).div_((high - low).where(high > low, 1.0))


@rule("pcb")
class PCB(TaskVectorRule):
    """Task vectors weighted entry by entry by how they compete."""

    order_invariant = True
    ratio: float = option(0.1, help="share of entries whose score is not dropped", gt=0, le=1, search=(0.05, 0.5))
    lam: float = option(1.2, help="scale of the merged task vector", ge=0, search=(0.5, 3.0))
    taus: list[Weights] = state(list)
    bounds: list[list[float]] = state(list)  #: of every task, what magnitudes are clamped to

    def merge(self, task: Task) -> Weights:
        """Score every task vector against the sum of all."""
        import torch

        tau = self.tau(task)
        d, magnitude = tau.vector.numel(), tau.vector.abs()
        ends = (int(d * OUTLIERS), int(d * (1 - OUTLIERS) - 1))  # ranks, as the authors cut them off
        self.taus = [*self.taus, tau]
        self.bounds = [*self.bounds, [quantile(magnitude, rank) for rank in ends]]
        together = torch.zeros_like(magnitude, dtype=torch.float64)
        for tau in self.taus:
            together += tau.vector
        weighted, scores = torch.zeros_like(together), torch.zeros_like(together)
        for tau, (low, high) in zip(self.taus, self.bounds, strict=True):
            clamped = tau.vector.abs().double().clamp_(low, high)
            score = self.score(tau.vector, clamped, together)
            scores += score
            weighted += clamped.mul_(tau.vector.sign()).mul_(score)
        merged = weighted.div_(scores.clamp_(min=1e-12))
        return task.pretrained + tau.map(merged.to) * self.lam

    def score(self, tau: Tensor, magnitude: Tensor, together: Tensor) -> Tensor:
        """s (P,) of one task, from tau, its clamped magnitude and the sum of all task vectors."""
        score = normalised(magnitude).square_().mul_(len(self.taus)).exp_().mul_((tau * together).tanh_())
        return normalised(score.clamp_(min=quantile(score, int((1 - self.ratio) * len(score)))))


method(
    "pcb",
    "plain+pcb@pretrained",
    title="PCB-Merging",
    paper="arXiv:2410.02396",
    about="task vectors weighted by competition of entries",
)
