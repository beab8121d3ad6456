"""Iso-C and Iso-CTS, No Task Left Behind: Isotropic Model Merging with Common and Task-Specific Subspaces
(arXiv:2502.04959).

For each matrix, with the sum of task vectors Delta = sum_i tau_i = U S V^T, S = diag(s_1 .. s_R),

    Iso-C      theta_hat = theta_0 + alpha s U V^T,   s = (1/R) sum_r s_r

Iso-CTS keeps the k leading directions of Delta and fills the rest with what they leave of each task,

    tau'_i = tau_i - U_k U_k^T tau_i = U_i S_i V_i^T,   its leading (R - k) / T components,
    U* = [U_1 .. U_T, U_k],  V* likewise, each replaced by its polar factor,   theta_hat = theta_0 + alpha s* U* V*^T

with s* the mean of the singular values that were gathered, and k the common share (0.8) of R, moved so that T divides
R - k. Tensors that are not matrices: the mean of the tau_i. No data. Iso-C carries Delta (P), Iso-CTS all task vectors
(T P); both are merged from scratch after each task.

In the paper R = min(d_out, d_in). Here R is the numerical rank of Delta, which of full-rank task vectors is that. LoRA
leaves a null space, whose basis is arbitrary: there the paper's rule would write directions drawn by the decomposition
into the weights, at the strength of all others, and its mean would count their zeros. A tau'_i of lower rank gives
the components that it has. alpha 1; the authors' code (danielm1405/iso-merging) searches it on validation images.

Published numbers: CLIP, a zero-shot head a task, task id given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.method import Task, TaskVectorRule, Weights, method, option, rule, state
from bench.method.tools.core import MatrixRule, isotropic, polar, rounding, thin_svd

if TYPE_CHECKING:
    from torch import Tensor


@rule("iso_c")
class IsoC(TaskVectorRule):
    """The sum of task vectors with a flat spectrum."""

    order_invariant = True
    alpha: float = option(1.0, help="scale of the merged task vector", ge=0, search=(0.2, 2.0))
    total: Weights = state()

    def merge(self, task: Task) -> Weights:
        """Add tau_t to the sum, flatten it."""
        self.total = self.total + self.tau(task)
        theta, merged = task.pretrained.tensors(), dict[str, "Tensor"]()
        for name, Delta in self.total.items():
            # Rounding errors of t task vectors add up like noise.
            matrix = Delta.dim() == 2
            merged[name] = isotropic(Delta, rounding(theta[name]) * task.t**0.5) if matrix else Delta / task.t
        return task.pretrained + self.total.with_tensors(merged) * self.alpha


@rule("iso_cts")
class IsoCTS(MatrixRule):
    """The leading directions of the sum, and each task's own, with a flat spectrum."""

    alpha: float = option(1.0, help="scale of the merged task vector", ge=0, search=(0.2, 2.0))
    common: float = option(0.8, help="share of directions that are those of the sum", ge=0, le=1)

    def merge(self, task: Task) -> Weights:
        """All task vectors from scratch."""
        return task.pretrained + self.merged(task) * self.alpha

    def matrix(self, M: Tensor, size: int) -> Tensor:
        """s* U* V*^T."""
        import torch

        U, s, Vt = thin_svd(M.sum(0))
        each = round((len(s) - int(len(s) * self.common)) / len(M))
        k = max(0, len(s) - each * len(M))
        specific = [thin_svd(tau - U[:, :k] @ (U[:, :k].mT @ tau)) for tau in M]
        gathered = [(u[:, :each], value[:each], vt[:each]) for u, value, vt in specific]
        left, values, right = zip(*gathered, (U[:, :k], s[:k], Vt[:k]), strict=True)
        spectrum = torch.cat(values)
        return polar(torch.cat(left, 1)) @ polar(torch.cat(right)) * (spectrum.sum() / max(1, len(spectrum)))


PAPER = "arXiv:2502.04959"
method("iso_c", "plain+iso_c@pretrained", title="Iso-C", paper=PAPER, about="sum of task vectors, flat spectrum")
method(
    "iso_cts", "plain+iso_cts@pretrained", title="Iso-CTS", paper=PAPER,
    about="common and task-specific directions, flat spectrum",
)  # fmt: skip
