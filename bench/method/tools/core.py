"""Task vectors of one matrix in the basis they share: what a spectral rule does there costs their rank, not their size.

tau_k = L M_k R with L (d_out, p) and R (q, d_in) orthonormal, p and q the ranks of the tau_k side by side and one above
the other. Singular values are those of the M_k, and what is made of singular vectors in the small basis is, carried
over by L and R, what would have been made of them in the large one. Task vectors of LoRA have rank r, so p <= T r.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bench.method.api import Task, TaskVectorRule, Weights, state

if TYPE_CHECKING:
    from torch import Tensor

RTOL = 1e-6  #: a singular value under this part of the largest is rounding: its vectors are arbitrary
SKETCHES = (64, 256)  #: ranks that are tried before a whole decomposition is made


def rounding(theta: Tensor) -> float:
    """A bound on the spectral norm of theta's own rounding errors (d_out, d_in), which its task vectors inherit.

    Random errors of size e have a spectral norm of e (sqrt(d_out) + sqrt(d_in)); e is at most eps times an entry.
    """
    import torch

    sides = sum(side**0.5 for side in theta.shape)
    return torch.finfo(theta.dtype).eps * float(theta.double().square().mean().sqrt()) * sides


def thin_svd(x: Tensor, floor: float = 0.0, rtol: float = RTOL) -> tuple[Tensor, Tensor, Tensor]:
    """Singular value decomposition U (m, r), s (r,), V^T (r, n) of one matrix to its numerical rank r, float64.

    Singular values under ``rtol`` of the largest or under ``floor`` are left out. A low rank is found by random
    projection (Halko et al., arXiv:0909.4061, with one step of subspace iteration, always the same draw), of 768 x 768
    numbers in a tenth of the time. That it caught all is known by the smallest value that it has: it is left out.
    """
    import torch

    x = x.double()
    for k in SKETCHES:
        if 2 * k > min(x.shape):
            break
        Q = torch.randn(x.shape[1], k, generator=torch.Generator().manual_seed(0), dtype=x.dtype).to(x)
        for side in (x, x.mT, x):
            Q = torch.linalg.qr(side @ Q).Q
        U, s, Vt = torch.linalg.svd(Q.mT @ x, full_matrices=False)
        rank = _rank(s, floor, rtol)
        if rank < k:
            return Q @ U[:, :rank], s[:rank], Vt[:rank]
    U, s, Vt = torch.linalg.svd(x, full_matrices=False)
    rank = _rank(s, floor, rtol)
    return U[:, :rank], s[:rank], Vt[:rank]


def _rank(s: Tensor, floor: float, rtol: float) -> int:
    """How many of the falling singular values (k,) are not rounding; of none, or of zeros: 0."""
    return int((s > max(rtol * float(s[0]), floor)).sum()) if len(s) else 0


def polar(x: Tensor) -> Tensor:
    """The polar factor U V^T of x = U S V^T (m, n), without the null space, where it would be arbitrary."""
    U, _, Vt = thin_svd(x)
    return U @ Vt


def isotropic(x: Tensor, floor: float = 0.0) -> Tensor:
    """x (m, n) with every singular value at the mean of those that are not rounding; its null space stays one."""
    U, s, Vt = thin_svd(x, floor)
    return U @ Vt * (s.sum() / max(1, len(s)))


def shared_basis(tau: Sequence[Tensor], floor: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """L (d_out, p), M (T, p, q), R (q, d_in) with tau_k = L M_k R, in float64.

    L are the left singular vectors of [tau_1 .. tau_T] side by side, R the right ones of them one above the other.

    Args:
        tau: T matrices (d_out, d_in).
        floor: what of each is rounding, as :func:`thin_svd` takes it.
    """
    import torch

    parts = [thin_svd(x, floor) for x in tau]
    L = thin_svd(torch.cat([U * s for U, s, _ in parts], 1))[0]
    R = thin_svd(torch.cat([s[:, None] * Vt for _, s, Vt in parts]))[2]
    return L, torch.stack([(L.mT @ U * s) @ (Vt @ R.mT) for U, s, Vt in parts]), R


class MatrixRule(TaskVectorRule):
    """Base of rules that merge all task vectors of a matrix together, matrix by matrix, and average other tensors.

    All task vectors are kept (T P), and merged from scratch after each task.
    """

    order_invariant = True
    taus: list[Weights] = state(list)

    def merged(self, task: Task) -> Weights:
        """The merged task vector; tau_t is kept."""
        import torch

        self.taus = [*self.taus, self.tau(task)]
        theta, tensors = task.pretrained.tensors(), dict[str, "Tensor"]()
        for same in zip(*(tau.items() for tau in self.taus), strict=True):
            name, tau = same[0][0], [x for _, x in same]
            if tau[0].dim() == 2:
                L, M, R = shared_basis(tau, rounding(theta[name]))
                tensors[name] = L @ self.matrix(M, min(tau[0].shape)) @ R
            else:
                tensors[name] = torch.stack(tau).mean(0)
        return task.pretrained.with_tensors(tensors)

    def matrix(self, M: Tensor, size: int) -> Tensor:
        """The merged matrix (p, q) of task vectors (T, p, q) in their shared basis; ``size`` is min(d_out, d_in)."""
        raise NotImplementedError
