"""DOP, Continual Model Merging without Data: Dual Projections for Balancing Stability and Plasticity (NeurIPS 2025).

What was served before (o) and the new model (n) are merged matrix by matrix. With tau_o = theta_hat_{t-1} - theta_0 =
U_o S_o V_o^T, tau_n = theta*_t - theta_0 likewise, a merged matrix W should differ little from each where its task
vector lies, on the side of outputs and of inputs:

    L_i = ||S_i U_i^T (W - W_i)||_F^2 + ||(W - W_i) V_i S_i||_F^2,   i in {o, n}
    theta_hat_t = argmin_W a L_o + (1 - a) L_n

by 200 Adam steps of 1e-4 from W = (W_o + W_n) / 2, and theta_hat_1 = theta*_1. The weight a is found by multiple
gradient descent (MGDA): at each step the c that makes ||c g_o + (1 - c) g_n|| least, g_i = grad L_i / L_i, within
0.001 and 0.999, enters a moving average a <- beta a + (1 - beta) c, from 0.8 with beta 0.999, in each matrix by itself.
`beta=1` keeps a fixed. Tensors that are not matrices: half and half. No data, and nothing is carried.

Numbers are those of FusionBench's configuration (method/dop). Each task is trained from theta_0. U_i, S_i, V_i are
cut where their singular values sum to 0.99999 of the whole; there the direction that reaches it is left out (of a task
vector of rank one, everything), here it stays, and numerical rank is the end, past which directions are arbitrary.

Published numbers: CLIP, a zero-shot head a task, task id given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.method import Rule, Task, Weights, method, option, rule
from bench.method.tools.core import rounding, thin_svd

if TYPE_CHECKING:
    from torch import Tensor


@rule("dop")
class DOP(Rule):
    """The matrix nearest to the old and the new one along their task vectors' singular directions."""

    alpha: float = option(0.8, help="weight of what was served, at first", ge=0, le=1)
    beta: float = option(0.999, help="how much of the weight stays at a step", ge=0, le=1)
    share: float = option(0.99999, help="part of the sum of singular values whose directions count", gt=0, le=1)
    steps: int = option(200, help="Adam steps on the merged matrix", ge=0)
    lr: float = option(1e-4, help="Adam's learning rate", gt=0, search=(1e-6, 1e-2))

    def merge(self, task: Task) -> Weights:
        """Merge what was served with what was trained."""
        if task.t == 1:
            return task.trained
        tau_o, tau_n = (weights - task.pretrained for weights in (task.served, task.trained))
        merged = ((tau_o + tau_n) * 0.5).tensors()
        weights = []
        theta = task.pretrained.tensors()
        for (name, old), (_, new) in zip(tau_o.items(), tau_n.items(), strict=True):
            if old.dim() == 2:
                floor = rounding(theta[name])
                merged[name], a = self.minimum(*(Distance(tau, self.share, floor) for tau in (old, new)))
                weights.append(a)
        task.log(alpha=sum(weights) / max(1, len(weights)))
        return task.pretrained + tau_o.with_tensors(merged)

    def minimum(self, old: Distance, new: Distance) -> tuple[Tensor, float]:
        """The merged task vector (d_out, d_in), and the last a."""
        from bench.method.tools.minimise import minimise

        a = old.tau.new_tensor(self.alpha)

        def loss(tau: Tensor, step: int) -> Tensor:
            nonlocal a
            (L_o, g_o), (L_n, g_n) = (side.loss_and_gradient(tau.detach()) for side in (old, new))
            a = self.beta * a + (1 - self.beta) * mgda(g_o / L_o.where(L_o > 0, 1), g_n / L_n.where(L_n > 0, 1))
            return (tau * (a * g_o + (1 - a) * g_n)).sum()  # not the objective, but its gradient

        return minimise(loss, (old.tau + new.tau) / 2, self.steps, self.lr), float(a)


class Distance:
    """L_i as a function of tau = W - theta_0, its gradient in closed form."""

    def __init__(self, tau: Tensor, share: float, floor: float) -> None:
        U, s, Vt = thin_svd(tau, floor)
        kept = int((s.cumsum(0) < share * s.sum()).sum()) + 1
        self.tau = tau
        self.left, self.right = ((side * s[:kept]).to(tau) for side in (U[:, :kept], Vt[:kept].mT))
        self.low_rank = 2 * self.left.shape[1] < min(tau.shape)
        if not self.low_rank:
            self.left, self.right = self.left @ self.left.mT, self.right @ self.right.mT

    def loss_and_gradient(self, tau: Tensor) -> tuple[Tensor, Tensor]:
        """L_i () and its gradient (d_out, d_in): 2 (U S^2 U^T D + D V S^2 V^T), D = tau - tau_i."""
        D = tau - self.tau
        if self.low_rank:
            half = self.left @ (self.left.mT @ D) + (D @ self.right) @ self.right.mT
        else:
            half = self.left @ D + D @ self.right
        return (half * D).sum(), 2 * half


def mgda(g_o: Tensor, g_n: Tensor) -> Tensor:
    """The c with the least ||c g_o + (1 - c) g_n||, by the rule of Sener & Koltun's code (arXiv:1810.04650)."""
    oo, on, nn = (g_o * g_o).sum(), (g_o * g_n).sum(), (g_n * g_n).sum()
    apart = oo + nn - 2 * on
    c = (nn - on) / apart.where(apart > 0, 1)
    return c.where(on < nn, 0.001).where(on < oo, 0.999)


method("dop", "plain+dop@pretrained", title="DOP", paper="NeurIPS 2025", about="dual projections, old against new")
