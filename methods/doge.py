"""DOGE-TA, Modeling Multi-Task Model Merging as Adaptive Projective Gradient Descent (arXiv:2501.01230).

For each 2-D weight, with lam_k = 0.07 / ||tau_k||_F, a shared change Delta makes up for what the tasks do to each
other, outside a subspace that holds what they have in common:

    theta_hat = theta_0 + sum_k lam_k m_k * (tau_k + Delta),   m_k = 1 on the 30 % largest |tau_k| of all layers as one
    Delta = argmin sum_j sum_rows <tau_j, tau_j - sum_k lam_k tau_k - Delta sum_k lam_k>^2   (each row's inner product)
    gradient <- gradient - Pi gradient,   Pi = B B^T

by 400 Adam steps of 1e-4 from 0. B are the leading rank/6 left singular vectors of the leading rank/T ones of every
tau_k side by side, rank = min(d_out, d_in). No data; all task vectors are kept, and merged from scratch at each task
(folding would make one task of the whole past). Adam divides the projected gradient elementwise, so Delta itself does
have a part along B. Tensors that are not matrices stay at theta_0.

As FusionBench's code except where that has no answer: at least one direction of every task and in B; no directions
beyond a task vector's rank, where they are arbitrary (LoRA); after one task B is its own leading directions (side by
side their singular values would all be 1); a task that left a layer alone has no part in it (there: a division by
zero); the weights are those that training adapts (there: chosen by name).

Published numbers: CLIP, a zero-shot head a task, task id given (8 tasks).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.method import Task, TaskVectorRule, Weights, method, option, rule, state
from bench.method.tools.spectral import svd

if TYPE_CHECKING:
    from torch import Tensor


@rule("doge")
class DOGE(TaskVectorRule):
    """Task arithmetic, layer-wise scaled and trimmed, plus a learnt shared change."""

    order_invariant = True
    lam: float = option(0.07, help="lam_k times the norm of tau_k, layer by layer", ge=0, search=(0.01, 0.5))
    keep: float = option(0.3, help="part of each task vector that is kept", gt=0, le=1)
    subspace: int = option(6, help="the shared subspace has rank / this many directions", ge=1)
    steps: int = option(400, help="Adam steps on Delta", ge=0)
    lr: float = option(1e-4, help="Adam's learning rate", gt=0)
    taus: list[Weights] = state(list)

    def merge(self, task: Task) -> Weights:
        """All task vectors from scratch."""
        import torch

        self.taus = [*self.taus, self.tau(task)]
        matrices = [[s for s in tau.stacks() if s[1].dim() == 3] for tau in self.taus]
        if not matrices[0]:
            return task.pretrained
        cuts = [smallest_kept([x for _, x in stacks], self.keep) for stacks in matrices]
        out, losses = dict[str, "Tensor"](), [0.0, 0.0]
        for stacks in zip(*matrices, strict=True):
            tau = torch.stack([x for _, x in stacks])
            layers = Layers(tau, self.lam, self.subspace)
            Delta = layers.learnt(self.steps, self.lr)
            losses[0] += float(layers.loss(torch.zeros_like(Delta), 0))
            losses[1] += float(layers.loss(Delta, self.steps))
            moved = sum(
                lam[:, None, None] * (x + Delta) * (x.abs() >= cut)
                for lam, x, cut in zip(layers.lam, tau, cuts, strict=True)
            )
            out.update(zip(stacks[0][0], moved, strict=True))
        task.log(loss_before=losses[0], loss_after=losses[1])
        return task.pretrained + task.pretrained.zeros().with_tensors(out)


class Layers:
    """All layers of one shape: tau (T, n, d_out, d_in), lam_k (T, n), B (n, d_out, q)."""

    def __init__(self, tau: Tensor, lam: float, subspace: int) -> None:
        norms = tau.double().flatten(2).norm(dim=-1)
        self.lam = (lam / norms.where(norms > 0, 1) * (norms > 0)).to(tau)
        self.B = shared_basis(tau, subspace).to(tau)
        self.tau, self.scale = tau, self.lam.sum(0)[:, None]
        rest = tau - (self.lam[..., None, None] * tau).sum(0)
        self.target = (tau * rest).sum(-1)

    def loss(self, Delta: Tensor, step: int) -> Tensor:
        """The sum of squares at Delta (n, d_out, d_in)."""
        import torch

        return (self.target - torch.einsum("tnoi,noi->tno", self.tau, Delta) * self.scale).square().sum()

    def project(self, gradient: Tensor) -> Tensor:
        """The gradient (n, d_out, d_in) without its part in the shared subspace."""
        return gradient - self.B @ (self.B.mT @ gradient)

    def learnt(self, steps: int, lr: float) -> Tensor:
        """Delta after so many steps."""
        import torch

        from bench.method.tools.minimise import minimise

        return minimise(self.loss, torch.zeros_like(self.tau[0]), steps, lr, self.project)


def shared_basis(tau: Tensor, subspace: int) -> Tensor:
    """B (n, d_out, q) of task vectors (T, n, d_out, d_in); columns that are left over are 0."""
    import torch

    rank = min(tau.shape[-2:])
    each = torch.cat([svd(x)[0][..., : max(1, rank // len(tau))] for x in tau], -1)
    return (each if len(tau) == 1 else svd(each)[0])[..., : max(1, rank // subspace)]


def smallest_kept(stacks: list[Tensor], keep: float) -> Tensor:
    """The smallest magnitude that the mask keeps: of P numbers, int(P keep) are larger (all that equal it are kept)."""
    import torch

    magnitudes = torch.cat([x.reshape(-1) for x in stacks]).abs()
    P = len(magnitudes)
    return magnitudes.kthvalue(max(1, P - int(P * keep))).values


method("doge", "plain+doge@pretrained", title="DOGE-TA", paper="arXiv:2501.01230", about="projected gradient descent")
