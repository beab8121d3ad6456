"""LoRE-Merging, low-rank estimation (arXiv:2502.10749), with singular value thresholding.

The task models are one base plus low-rank parts, theta_i = B + d_i, found by turns (20 of each, from d_i = 0):

    B = mean_i(theta_i - d_i),   d_i = SVT_mu(theta_i - B),   theta_hat = B + lam mean_i d_i

SVT_mu lowers the singular values of a matrix by mu, down to 0. theta_0 is not used, no data is needed, and all task
models are kept.

There is no official code that we know of, and the printed objective has a *squared* nuclear norm, for which SVT is not
the exact step: hence the name `lore_svt`. What is open, and our choice: each turn minimises exactly
sum_i 1/2 ||theta_i - B - d_i||^2 + mu ||d_i||_*, so mu must not change on the way; it is 0.1 times the largest singular
value of any theta_i - mean theta, tensor by tensor (`absolute=true`: mu itself, as a public script of a third party has
it); tensors that are not matrices are averaged.

Worth knowing: B of the last turn is mean theta - mean d before it, so theta_hat = mean theta + mean(d after - d before)
at lam = 1. Once the turns have settled that *is* the average; only lam != 1 makes another model.

For speed the turns run on theta_i - mean theta in a basis of what all of them span, which changes nothing: T LoRA task
vectors of rank r leave matrices of T r rows and columns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.method import Rule, Task, Weights, method, option, rule, state
from bench.method.tools.spectral import svd

if TYPE_CHECKING:
    from torch import Tensor


@rule("lore")
class LoRE(Rule):
    """A common base and low-rank parts."""

    order_invariant = True
    lam: float = option(1.0, help="scale of the mean of the low-rank parts", ge=0)
    mu: float = option(0.1, help="threshold, relative to the largest singular value", ge=0, search=(0.01, 1.0))
    absolute: bool = option(False, help="mu is the threshold itself, as in a third party's script")
    turns: int = option(20, help="of B and d", ge=1)
    moved: list[Weights] = state(list)  #: theta*_i - theta_0

    def merge(self, task: Task) -> Weights:
        """All task models from scratch."""
        import torch

        self.moved = [*self.moved, task.trained - task.pretrained]
        mean = sum(self.moved[1:], self.moved[0]) / len(self.moved)
        out: dict[str, Tensor] = {}
        for stacks in zip(*(w.stacks() for w in self.moved), strict=True):
            names, x = stacks[0][0], torch.stack([stack for _, stack in stacks]).double()
            if x.dim() == 4:
                out.update(zip(names, self._from_the_mean(x - x.mean(0)), strict=True))
        return task.pretrained + mean + mean.zeros().with_tensors(out)

    def _from_the_mean(self, x: Tensor) -> Tensor:
        """theta_hat - mean theta (n, o, i) of x_i = theta_i - mean theta (T, n, o, i)."""
        import torch

        if x.shape[-2] < x.shape[-1]:
            return self._from_the_mean(x.mT).mT
        _, s, right = svd(torch.cat(tuple(x), -2))
        rank = max(1, int((s > 0).sum(-1).max()))
        if rank == x.shape[-1]:
            return self._turns(x)
        right = right[:, :rank]
        left, s, _ = svd(torch.cat(tuple(x @ right.mT), -1))
        left = left[..., : max(1, int((s > 0).sum(-1).max()))]
        return left @ self._turns(left.mT @ x @ right.mT) @ right

    def _turns(self, x: Tensor) -> Tensor:
        """The same, by turns."""
        mu = self.mu if self.absolute else self.mu * svd(x)[1].amax((0, -1))[:, None]
        d = x.new_zeros(x.shape)
        for _ in range(self.turns):
            B = (x - d).mean(0)
            U, s, Vt = svd(x - B)
            d = U * (s - mu).clamp_min(0)[..., None, :] @ Vt
        return B + d.mean(0) * self.lam


method("lore_svt", "plain+lore@pretrained", title="LoRE (SVT)", paper="arXiv:2502.10749", status="variant")
