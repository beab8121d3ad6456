"""NUFILT, Null-Space Filtering for Data-Free Continual Model Merging (arXiv:2509.21413).

A task vector's input directions are about those of its task's images. So what was served before (M_o = theta_hat_{t-1}
- theta_0, with leading input directions V_o) is kept from the new task vector M_n = theta*_t - theta_0 (with V_n),
matrix by matrix, and what that takes from the new task is given back as far as the old ones allow:

    F = M_o + M_n (P + B A),   P = I - V_o V_o^T,   A (r, d_in), B (d_in, r)
    A, B = argmin ||(F - M_n) V_n||_F^2 + ||(F - M_o) V_o||_F^2,   theta_hat_t = theta_0 + F

by 50 Adam steps of 1e-3 from B = 0 and A normal with deviation 0.02; r = 64, V_o has 128 columns, V_n 8. No data, and
nothing is carried. Each task is trained from theta_0.

As the authors' code (zihuanqiu/NUFILT: nufilt.py, filter_lora.py) except where that is chance: there the first task
meets the decomposition of zeros, which filters its first 128 input coordinates, here nothing (theta*_1); directions
end with the numerical rank. Its matrices are those of attention and the first of each MLP, here all; tensors that are
not matrices stay at theta_0, as there.

Published numbers: CLIP, a zero-shot head a task, task id given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.method import Task, TaskVectorRule, Weights, method, option, rule
from bench.method.tools.core import rounding, thin_svd

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


@rule("nufilt")
class NUFILT(TaskVectorRule):
    """The new task vector where the old ones have no inputs, and what can be given back."""

    rank: int = option(64, help="rank r of the adapter B A", ge=1)
    old: int = option(128, help="input directions of what was served that are filtered", ge=1)
    new: int = option(8, help="input directions of the new task that are given back", ge=0)
    steps: int = option(50, help="Adam steps on A and B", ge=0)
    lr: float = option(1e-3, help="Adam's learning rate", gt=0, search=(1e-5, 1e-1))

    def merge(self, task: Task) -> Weights:
        """Filter tau_t, adapt, add."""
        theta, merged = task.pretrained.tensors(), dict[str, "Tensor"]()
        served = task.served - task.pretrained
        for (name, M_o), (_, M_n) in zip(served.items(), self.tau(task).items(), strict=True):
            if M_o.dim() == 2:
                rng = task.rng(f"nufilt {name}")
                merged[name] = M_o + self.filtered(M_o.double(), M_n.double(), rng, rounding(theta[name])).to(M_o)
        return task.pretrained + served.with_tensors(merged)

    def filtered(self, M_o: Tensor, M_n: Tensor, rng: np.random.Generator, floor: float) -> Tensor:
        """M_n (P + B A), all (d_out, d_in)."""
        import torch

        from bench.method.tools.minimise import minimise

        V_o = thin_svd(M_o, floor)[2][: self.old].mT
        if not V_o.shape[1]:
            return M_n
        U, s, Vt = thin_svd(M_n, floor)
        V_n, C = Vt[: self.new].mT, s[:, None] * Vt  # M_n = U C
        directions = torch.cat([V_n, V_o], 1)
        # (F - M_n) V_n is U (C B A V_n - missing) beside what no B A changes; (F - M_o) V_o is U C B A V_o.
        missing = C @ V_o @ (V_o.mT @ V_n) - U.mT @ M_o @ V_n
        target = torch.cat([missing, missing.new_zeros(len(C), V_o.shape[1])], 1)
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))  # on the CPU, wherever the weights lie
        A = 0.02 * torch.randn(self.rank, M_n.shape[1], generator=generator, dtype=M_n.dtype).to(M_n)

        def loss(factors: Tensor, step: int) -> Tensor:
            return (C @ factors[1].mT @ (factors[0] @ directions) - target).square().sum()

        A, Bt = minimise(loss, torch.stack([A, torch.zeros_like(A)]), self.steps, self.lr)
        return M_n - M_n @ V_o @ V_o.mT + M_n @ Bt.mT @ A


method("nufilt", "plain+nufilt@pretrained", title="NUFILT", paper="arXiv:2509.21413", about="null-space filtering")
