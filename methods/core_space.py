"""Core Space Merging, Accurate and Efficient Low-Rank Model Merging in Core Space (arXiv:2509.17786).

Task vectors of LoRA, tau_i = B_i A_i, are merged in the basis that all factors of a matrix share, where they are small:

    U_B from the SVD of [B_1 .. B_T] side by side,  V_A from that of [A_1; ..; A_T] one above the other
    M_i = U_B^T B_i A_i V_A,    theta_hat = theta_0 + lam U_B merge(M_1, ..., M_T) V_A^T

Nothing is lost. ``combine`` is what merges:

    tsv     TSV-Merge (arXiv:2412.00081) of leading components, as many a task as the core divided by T has
    ties    TIES (arXiv:2306.01708), matrix by matrix: the ``density`` share, 0.1, and the mean of those that agree
    sum     task arithmetic, which in the core is what it is outside of it

and with ``isotropic`` the merged core gets a flat spectrum (Iso-C, arXiv:2502.04959). `core_space` is tsv and
isotropic, the example of the authors' code (apanariello4/core-space-merging), which searches lam on validation images;
here it is 1. Iso-C of the whole matrix is isotropic sum: methods/iso.py stays in the core by itself. Tensors that are
not matrices: lam times the mean of the tau_i. No data.

Rules see dense task vectors, so B_i = U_i S_i^(1/2) and A_i = S_i^(1/2) V_i^T of the decomposition to numerical rank:
the same spaces, turned another way, which TIES alone can tell; of full-rank task vectors the core is the matrix,
rotated. The paper merges all tasks at once; here all task vectors are kept (T P), and merged from scratch after each
task.

Published numbers: CLIP, a zero-shot head a task, task id given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from bench.method import Task, Weights, method, option, rule
from bench.method.tools.core import MatrixRule, decorrelated, isotropic, thin_svd
from bench.method.tools.sparsify import elect_and_merge, trim

if TYPE_CHECKING:
    from torch import Tensor


@rule("core_space")
class CoreSpace(MatrixRule):
    """Another rule, in the basis of all LoRA factors."""

    combine: Literal["tsv", "ties", "sum"] = option("tsv", help="what merges in the core")
    isotropic: bool = option(True, help="flatten the spectrum of the merged core")
    density: float = option(0.1, help="share of a core's numbers that TIES keeps", gt=0, le=1, search=(0.05, 1.0))
    lam: float = option(1.0, help="scale of the merged task vector", ge=0, search=(0.1, 2.0))

    def merge(self, task: Task) -> Weights:
        """All task vectors from scratch."""
        return task.pretrained + self.merged(task) * self.lam

    def matrix(self, M: Tensor, size: int) -> Tensor:
        """The merged core."""
        core = self.combined(M)
        return isotropic(core) if self.isotropic else core

    def combined(self, M: Tensor) -> Tensor:
        """merge(M_1, ..., M_T)."""
        if self.combine == "ties":
            return self.ties(M)
        if self.combine == "tsv":
            return decorrelated(list(M), max(1, min(M.shape[1:]) // len(M)))
        return M.sum(0)

    def ties(self, M: Tensor) -> Tensor:
        """TIES, whose result depends on the basis: it is taken in U_B and V_A."""
        import torch

        parts = [thin_svd(x) for x in M]
        U_B = thin_svd(torch.cat([U * s.sqrt() for U, s, _ in parts], 1))[0]
        V_At = thin_svd(torch.cat([s.sqrt()[:, None] * Vt for _, s, Vt in parts]))[2]
        cores = U_B.mT @ M @ V_At.mT
        if not cores.numel():
            return torch.zeros_like(M[0])
        keep = max(1, round(self.density * cores[0].numel()))
        merged = elect_and_merge([trim(core.flatten(), keep) for core in cores])
        return U_B @ merged.view_as(cores[0]) @ V_At


PAPER = "arXiv:2509.17786"
method(
    "core_space", "plain+core_space@pretrained", title="Core space, TSV and Iso", paper=PAPER,
    about="TSV-Merge in the basis of all LoRA factors, flat spectrum",
)  # fmt: skip
method(
    "core_space_tsv", "plain+core_space@pretrained:isotropic=false", title="Core space, TSV", paper=PAPER,
    status="variant",
)  # fmt: skip
method(
    "core_space_ties", "plain+core_space@pretrained:combine=ties,isotropic=false", title="Core space, TIES",
    paper=PAPER, status="variant",
)  # fmt: skip
