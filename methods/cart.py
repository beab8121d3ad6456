"""CART, Revisiting Weight Averaging for Model Merging (arXiv:2412.12153).

Task vectors are centred on the mean of the models, and each matrix of them is reduced to its leading directions:

    theta_hat = theta_bar + lam sum_{i<=t} SVD_k(theta*_i - theta_bar),   theta_bar = mean of theta*_1 .. theta*_t

SVD_k keeps k = max(1, int(ratio R)) components. lam 2.0, ratio 0.12 (the authors' settings for CLIP; AdaRank's paper,
arXiv:2503.22178, tunes them by backbone and number of tasks, from 1.0 to 3.0 and 0.16 to 0.32: `cart_adarank` is 2.3
and 0.16, from which its own tuning starts). Tensors that are not matrices: theta_bar, as centred vectors sum to 0.
No data. The paper merges all tasks at once; here all task vectors are kept (T P), and merged from scratch after each
task.

In the paper R = min(d_out, d_in). Here R is the numerical rank of the centred matrix, as in methods/adarank.py: of
full-rank task vectors that is the paper's count, and LoRA's few directions would otherwise nearly all be kept.
The authors' matrices are those of attention and MLP; here all.

Published numbers: CLIP, a zero-shot head a task, task id given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.method import Task, Weights, method, option, rule
from bench.method.tools.core import MatrixRule, thin_svd

if TYPE_CHECKING:
    from torch import Tensor


@rule("cart")
class CART(MatrixRule):
    """The mean of the models, and the leading directions of what sets each apart."""

    serves_first = True
    lam: float = option(2.0, help="scale of the centred, rank-reduced task vectors", ge=0, search=(0.5, 4.0))
    ratio: float = option(0.12, help="share of the rank that is kept", gt=0, le=1, search=(0.04, 1.0))

    def merge(self, task: Task) -> Weights:
        """All task vectors from scratch."""
        return task.pretrained + self.merged(task)

    def matrix(self, M: Tensor, size: int) -> Tensor:
        """The mean and lam times the sum of what is kept."""
        mean = M.mean(0)
        merged = mean.clone()
        for tau in M:
            U, s, Vt = thin_svd(tau - mean)
            k = max(1, int(self.ratio * len(s)))
            merged += self.lam * (U[:, :k] * s[:k]) @ Vt[:k]
        return merged


PAPER = "arXiv:2412.12153"
method("cart", "plain+cart@pretrained", title="CART", paper=PAPER, about="centred, rank-reduced task vectors")
method(
    "cart_adarank", "plain+cart@pretrained:lam=2.3,ratio=0.16", title="CART (AdaRank's settings)", paper=PAPER,
    status="variant",
)  # fmt: skip
