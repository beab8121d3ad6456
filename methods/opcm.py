"""OPCM, Merging Models on the Fly Without Retraining: orthogonal projection (arXiv:2501.09522).

With A the sum of what was merged so far, each linear layer's new task vector is freed of what lies along A's singular
directions before it is added: M = A_l = U S V^T,

    P = U^T tau_l V,  P_ij <- 0 for i = j and for i, j < r,  C_l = U P V^T,  r = min{i : sum_{j<=i} s_j > alpha sum s}

(i from 0), C_l = tau_l for all other tensors, A <- A + C, and the length is set to that of a typical task vector, over
all tensors together:

    theta_hat_t = theta_0 + n_t A / ||A||,   n_t = mean_{i<=t} ||tau_i||

so theta_hat_1 = theta*_1. Carried: A and the sum of norms. alpha 0.5. C_l is tau_l minus the removed part, for which
the thin decomposition is enough.

Where the authors' code (in FusionBench) leaves something to chance or to rounding we differ: the diagonal is zeroed for
i < rank(M) only (a LoRA task vector has a large null space, whose basis is arbitrary: zeroing the "diagonal" there
makes the result depend on how the decomposition is computed, by tens of percent); alpha = 1 zeroes the whole block
(there: none of it); a layer that nothing was merged into yet takes tau_l as it is. `fusionbench=true`, method
`opcm_ref`, is as there. A linear layer is every 2-D tensor that is adapted.

Published numbers: CLIP, a zero-shot head a task, task id given (8 to 20 tasks).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.method import Task, TaskVectorRule, Weights, method, option, rule, state
from bench.method.tools.spectral import svd

if TYPE_CHECKING:
    from torch import Tensor


@rule("opcm")
class OPCM(TaskVectorRule):
    """Sum of projected task vectors, at the mean length of a task vector."""

    alpha: float = option(
        0.5, help="part of the sum of singular values whose block is removed", ge=0, le=1, search=(0.1, 1.0)
    )
    fusionbench: bool = option(False, help="arbitrary null space, and alpha 1 removes nothing, as in FusionBench")
    A: Weights = state()
    norms: float = state(0.0)

    def merge(self, task: Task) -> Weights:
        """Project tau_t, add it, set the length."""
        tau = self.tau(task)
        self.norms += tau.norm()
        self.A = self.A + (tau if task.t == 1 else self.project(tau))
        length = self.A.norm()
        task.log(length_before=length, length=self.norms / task.t)
        return task.pretrained + self.A * (self.norms / task.t / length if length else 0.0)

    def project(self, tau: Weights) -> Weights:
        """C: tau without its part along A's singular directions, in every 2-D tensor."""
        out: dict[str, Tensor] = {}
        for (names, M), (_, stack) in zip(self.A.stacks(), tau.stacks(), strict=True):
            if M.dim() == 3:
                out.update(zip(names, stack - self._along(M, stack.double()).to(stack), strict=True))
        return tau.with_tensors(out)

    def _along(self, M: Tensor, tau: Tensor) -> Tensor:
        """What is removed of tau (n, d_out, d_in)."""
        import torch

        if self.fusionbench:
            U, s, Vt = torch.linalg.svd(M.double(), full_matrices=False)
            r = (s.cumsum(-1) > self.alpha * s.sum(-1, keepdim=True)).int().argmax(-1)
        else:
            U, s, Vt = svd(M)  # beyond the rank U and V are zero: nothing is removed there
            sums = s.cumsum(-1)
            r = (sums <= self.alpha * sums[:, -1:]).sum(-1)
        leading = torch.arange(s.shape[-1], device=s.device) < r[:, None]
        zeroed = leading[:, :, None] & leading[:, None, :] | torch.eye(s.shape[-1], dtype=torch.bool, device=s.device)
        return U @ (U.mT @ tau @ Vt.mT * zeroed) @ Vt


PAPER = "arXiv:2501.09522"
method("opcm", "plain+opcm@pretrained", title="OPCM", paper=PAPER, about="orthogonal projection of task vectors")
method("opcm_ref", "plain+opcm@pretrained:fusionbench=true", title="OPCM (FusionBench)", paper=PAPER, status="variant")
