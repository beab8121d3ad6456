"""Task vectors of one matrix in the basis they share: what a spectral rule does there costs their rank, not their size.

tau_k = L M_k R with L (d_out, p) and R (q, d_in) orthonormal, p and q the ranks of the tau_k side by side and one above
the other. Singular values are those of the M_k, and what is made of singular vectors in the small basis is, carried
over by L and R, what would have been made of them in the large one. Task vectors of LoRA have rank r, so p <= T r.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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


def decorrelated(M: Sequence[Tensor], k: int) -> Tensor:
    """TSV-Merge (arXiv:2412.00081): U S V^T (p, q) of the k leading components of every M_i (p, q) side by side.

    U and V are replaced by their polar factors; a component beyond a matrix's numerical rank is left out.
    """
    import torch

    U, S, Vt = zip(*((U[:, :k], s[:k], Vt[:k]) for U, s, Vt in map(thin_svd, M)), strict=True)
    return (polar(torch.cat(U, 1)) * torch.cat(S)) @ polar(torch.cat(Vt))


def shared_basis(tau: Sequence[Tensor], floor: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """L (d_out, p), M (T, p, q), R (q, d_in) with tau_k = L M_k R, in float64.

    Any orthonormal bases of what all singular vectors span; where that may be the whole space, the space's own.

    Args:
        tau: T matrices (d_out, d_in).
        floor: what of each is rounding, as :func:`thin_svd` takes it.
    """
    import torch

    parts = [thin_svd(x, floor) for x in tau]
    L, R = _span([U for U, _, _ in parts]), _span([Vt.mT for _, _, Vt in parts]).mT
    return L, torch.stack([(L.mT @ U * s) @ (Vt @ R.mT) for U, s, Vt in parts]), R


def _span(vectors: Sequence[Tensor]) -> Tensor:
    """An orthonormal basis (d, p) of vectors (d, k)."""
    import torch

    beside = torch.cat(list(vectors), 1)
    side, k = beside.shape
    return torch.eye(side, dtype=beside.dtype, device=beside.device) if k >= side else thin_svd(beside)[0]


class MatrixRule(TaskVectorRule):
    """Base of rules that merge all task vectors of a matrix together, matrix by matrix, and average other tensors.

    All task vectors are kept (T P), and merged from scratch after each task.
    """

    order_invariant = True
    taus: list[Weights] = state(list)

    def add(self, task: Task) -> None:
        """Keep tau_t."""
        self.taus = [*self.taus, self.tau(task)]

    def bases(self, task: Task) -> Iterator[tuple[str, tuple[Tensor, Tensor, Tensor]]]:
        """Name and L, M, R of each matrix, made as they are asked for."""
        theta = task.pretrained.tensors()
        for views in zip(*(tau.items() for tau in self.taus), strict=True):
            name, tau = views[0][0], [x for _, x in views]
            if tau[0].dim() == 2:
                yield name, shared_basis(tau, rounding(theta[name]))

    def with_means(self, matrices: Mapping[str, Tensor]) -> Weights:
        """A task vector of these matrices, by name, and the mean of every other tensor."""
        return (sum(self.taus[1:], self.taus[0]) / len(self.taus)).with_tensors(matrices)

    def merged(self, task: Task) -> Weights:
        """The merged task vector; tau_t is kept."""
        shape = dict(zip(task.pretrained.layout.names, task.pretrained.layout.shapes, strict=True))
        self.add(task)
        bases = self.bases(task)
        return self.with_means({name: L @ self.matrix(M, min(shape[name])) @ R for name, (L, M, R) in bases})

    def matrix(self, M: Tensor, size: int) -> Tensor:
        """The merged matrix (p, q) of task vectors (T, p, q) in their shared basis; ``size`` is min(d_out, d_in)."""
        raise NotImplementedError
