"""Linear algebra that several rules share, as pure functions on stacks of matrices, in float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from bench.method.weights import Weights

RTOL = 1e-6  #: a singular value under this part of the largest is rounding: its vectors are arbitrary
HELD = 2**26  #: numbers of one kind in a batch of systems (half a GB)


def svd(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Thin singular value decomposition U, s, V^T of (..., m, n), s falling, k = min(m, n) of them.

    Singular values under 1e-6 of the largest become 0, *and so do their vectors*: any basis of a null space is as
    good as another, so what is made of it would be chance. Taken from the eigenvectors of the smaller of x^T x and
    x x^T, in less than half the time of a direct one; in float64 that costs no accuracy above the cut.
    """
    import torch

    wide = x.shape[-2] < x.shape[-1]
    tall = (x.mT if wide else x).double()
    v = torch.linalg.eigh(tall.mT @ tall).eigenvectors.flip(-1)
    u = tall @ v
    s = u.norm(dim=-2)
    inside = s > RTOL * s.amax(-1, keepdim=True)
    u, v, s = u * (inside / s.where(inside, 1))[..., None, :], v * inside[..., None, :], s * inside
    return (v, s, u.mT) if wide else (u, s, v.mT)


def accumulate(
    G: Mapping[str, Tensor], M: Mapping[str, Tensor], moments: Mapping[str, Tensor], change: Weights
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The running sums of G_t and change_t G_t with one more task, tensor by tensor, float64.

    Args:
        G: sums so far, by name; empty before the first task.
        M: sums so far of products, in the shapes of the weights.
        moments: for every tensor G_t: a symmetric matrix (d_in, d_in) for a weight (d_out, d_in), or a vector or a
            number, which multiply elementwise.
        change: what is weighted by them.

    Raises:
        UserError: a moment has another shape than at the tasks before, does not fit its tensor, or has none.
    """
    from bench.common.errors import UserError, unknown

    stray = moments.keys() - set(change.layout.names)
    if stray:
        raise unknown("tensor", min(stray), change.layout.names, "Gram matrices")
    sums, products = dict(G), dict(M)
    for name, x in change.items():
        g = moments[name]
        if g.dim() and g.shape[-1] != x.shape[-1]:
            raise UserError(f"the Gram matrix of {name} is {tuple(g.shape)}, which does not fit {tuple(x.shape)}")
        if name in G and G[name].shape != g.shape:
            raise UserError(f"{name} has a Gram matrix at some tasks and none at others; give it at all or at none")
        product = x.double() @ g if g.dim() == 2 else x.double() * g
        sums[name] = G[name] + g if name in G else g
        products[name] = M[name] + product if name in M else product
    return sums, products


def solved(
    G: Mapping[str, Tensor], M: Mapping[str, Tensor], solve: Callable[[Tensor, Tensor], Tensor]
) -> dict[str, Tensor]:
    """X with X G = M, tensor by tensor; where G is a vector or a number X = M / G, and 0 where G is 0.

    Args:
        G: as :func:`accumulate` gives it.
        M: as :func:`accumulate` gives it.
        solve: (G (n, d, d), M (n, o, d)) to X (n, o, d), for all matrices of one shape together.
    """
    import torch

    found, groups = dict[str, "Tensor"](), dict[tuple[int, ...], list[str]]()
    for name, g in G.items():
        if g.dim() == 2:
            groups.setdefault(tuple(M[name].shape), []).append(name)
        else:
            found[name] = (M[name] / g.where(g > 0, 1)) * (g > 0)
    for (_, d), names in groups.items():
        most = max(1, HELD // (d * d))
        for part in (names[i : i + most] for i in range(0, len(names), most)):
            x = solve(torch.stack([G[name] for name in part]), torch.stack([M[name] for name in part]))
            found.update(zip(part, x, strict=True))
    return found
