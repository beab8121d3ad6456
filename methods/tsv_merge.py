"""TSV-Merge, Task Singular Vectors: Reducing Task Interference in Model Merging (arXiv:2412.00081).

For each matrix, of every task vector tau_i = U_i S_i V_i^T the leading k = rank / T components, with rank =
min(d_out, d_in), side by side, and both sets of singular vectors decorrelated:

    U = [U_1 .. U_T],  S = diag(S_1 .. S_T),  V = [V_1 .. V_T],   U -> P_U Q_U^T where U = P_U D_U Q_U^T, V likewise

    theta_hat = theta_0 + alpha U S V^T,   alpha 1

(Procrustes: the nearest orthonormal columns). Tensors that are not matrices: the mean of the tau_i. No data.

The paper merges all tasks at once; here all task vectors are kept (T P), and merged from scratch after each task.
The authors' code (AntoAndGar/task_singular_vectors, TSVM_utils.py) and ours differ where the paper is silent: at least
one component a task; components beyond a task vector's numerical rank are left out, where theirs lets the arbitrary
basis of a null space decorrelate the rest. k is of min(d_out, d_in) as in the paper, so of LoRA's r components
none is lost before T > min(d_out, d_in) / r; columns that depend on each other (equal tasks) get the nearest
partial isometry.

Published numbers: CLIP, a zero-shot head a task, task id given; that code then searches alpha on validation
images.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.method import Task, Weights, method, option, rule
from bench.method.tools.core import MatrixRule, decorrelated

if TYPE_CHECKING:
    from torch import Tensor


@rule("tsv_merge")
class TSVMerge(MatrixRule):
    """Leading singular components of all tasks, decorrelated."""

    alpha: float = option(1.0, help="scale of the merged task vector", ge=0, search=(0.2, 2.0))

    def merge(self, task: Task) -> Weights:
        """All task vectors from scratch."""
        return task.pretrained + self.merged(task) * self.alpha

    def matrix(self, M: Tensor, size: int) -> Tensor:
        """U S V^T."""
        return decorrelated(list(M), max(1, size // len(M)))


method(
    "tsv_merge", "plain+tsv_merge@pretrained", title="TSV-Merge", paper="arXiv:2412.00081",
    about="leading singular vectors of all tasks, decorrelated",
)  # fmt: skip
