"""KnOTS, Model Merging with SVD to Tie the Knots (arXiv:2410.19735), with TIES.

Task vectors of LoRA share few directions with each other. Those of one matrix are laid side by side and decomposed,
which gives all of them one basis of outputs, and what they say in it is merged by TIES (arXiv:2306.01708):

    [tau_1 .. tau_T] = U S [V_1^T .. V_T^T],   theta_hat = theta_0 + lam U TIES(S V_1^T, ..., S V_T^T)

(S V_i^T = U^T tau_i). TIES is taken over all matrices together: of each task's numbers the ``density`` share of largest
magnitude is kept, the sign of the sum elected, and the mean taken of those that agree with it and are not 0. density
0.2; lam 0.6, with which the authors' settings for ViT-B/32 start (they search it on validation images). Tensors that
are not matrices: lam times the mean of the tau_i (theirs stay, unless merged by TIES apart). No data.

The paper merges all tasks at once; here all task vectors are kept (T P), and merged from scratch after each task.
Directions of numerical rank only (theirs: singular values over 1e-5). How many numbers are kept, and which sign is
elected where values cancel, is as in methods/ties.py. Authors' code: gstoica27/KnOTS.

Published numbers: CLIP, a zero-shot head a task, task id given; and a joint evaluation over all tasks'
classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.method import Task, Weights, method, option, rule
from bench.method.tools.core import MatrixRule, thin_svd
from bench.method.tools.sparsify import elect_and_merge, trim

if TYPE_CHECKING:
    from torch import Tensor


@rule("knots")
class KnOTS(MatrixRule):
    """TIES in the basis of outputs that the task vectors share."""

    density: float = option(0.2, help="share of a task's numbers that stay", gt=0, le=1, search=(0.05, 1.0))
    lam: float = option(0.6, help="scale of the merged task vector", ge=0, search=(0.2, 2.0))

    def merge(self, task: Task) -> Weights:
        """All task vectors from scratch."""
        import torch

        self.add(task)
        bases, aligned = dict[str, "Tensor"](), [dict[str, "Tensor"]() for _ in self.taus]
        for name, (L, M, R) in self.bases(task):
            U = thin_svd(torch.cat(list(M), 1))[0]  # of [tau_1 .. tau_T] it is L U
            bases[name] = L @ U
            for parts, core in zip(aligned, M, strict=True):
                parts[name] = U.mT @ core @ R
        if not bases:
            return task.pretrained + self.with_means({}) * self.lam
        vectors = [Weights.of(parts) for parts in aligned]
        keep = max(1, round(self.density * vectors[0].vector.numel()))
        ties = Weights(elect_and_merge([trim(x.vector, keep) for x in vectors]), vectors[0].layout)
        matrices = {name: bases[name] @ merged for name, merged in ties.items()}
        return task.pretrained + self.with_means(matrices) * self.lam


method("knots", "plain+knots@pretrained", title="KnOTS-TIES", paper="arXiv:2410.19735", about="TIES in a shared basis")
