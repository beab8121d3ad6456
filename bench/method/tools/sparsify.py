"""What several sparsifying rules share, as pure functions on vectors: draw, trim, rescale, elect signs and merge."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal

from bench.method.weights import Weights

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

Combine = Literal["mean", "sum", "max"]
Norm = Literal["l1", "l2", "linf"]
BLOCK = 2**17  #: entries of all vectors that are merged at a time, so that what is made of them stays in cache


def draw(like: Weights, p: float | Weights, rng: Callable[[str], np.random.Generator]) -> Tensor:
    """A mask (P,), each entry True with probability ``p``.

    Args:
        like: gives names, shapes and device.
        p: between 0 and 1, of all entries or of each.
        rng: the random stream of a tensor's name: an entry's draw does not depend on which tensors lie before it.
    """
    import torch

    shares = p.tensors() if isinstance(p, Weights) else dict.fromkeys(like.layout.names, p)

    def one(name: str, view: Tensor) -> Tensor:
        # On the CPU, whose generator is another than a GPU's: the mask must not depend on where the weights lie.
        generator = torch.Generator().manual_seed(int(rng(name).integers(2**62)))
        share = shares[name]
        share = share.reshape(-1).cpu() if isinstance(share, torch.Tensor) else share
        return (torch.rand(view.numel(), generator=generator) < share).to(view.device)

    return torch.cat([one(name, view) for name, view in like.items()])


def trim(vector: Tensor, keep: int, ties: bool = False) -> Tensor:
    """The vector (P,) with its ``keep`` entries of largest magnitude, zero elsewhere.

    Args:
        vector: (P,).
        keep: how many stay; P or more: all.
        ties: keep every entry as large as the smallest kept one, however many; otherwise the first in index order.
    """
    import torch

    if keep >= vector.numel():
        return vector.clone()
    if keep == 0:
        return torch.zeros_like(vector)
    magnitude = vector.abs()
    # kthvalue is linear in P; a sort of a hundred million numbers is not wanted at every task.
    threshold = magnitude.kthvalue(vector.numel() - keep + 1).values
    if ties:
        return vector * (magnitude >= threshold)
    kept = magnitude > threshold
    tied = (magnitude == threshold).nonzero()[:, 0][: keep - int(torch.count_nonzero(kept))]
    kept[tied] = True
    return vector * kept


def restore_norm(masked: Tensor, original: Tensor, norm: Norm) -> Tensor:
    """``masked`` scaled to the norm that the tensor had before entries were dropped (mergekit's rescaling).

    As there, nothing is scaled where either norm is under 1e-7.
    """
    import torch

    order = {"l1": 1.0, "l2": 2.0, "linf": float("inf")}[norm]
    before, after = (torch.linalg.vector_norm(t, order, dtype=torch.float64) for t in (original, masked))
    usual = (before >= 1e-7) & (after >= 1e-7)
    return masked * (before / after).where(usual, 1.0).to(masked)


def elect_and_merge(
    vectors: Sequence[Tensor], combine: Combine = "mean", cancelled: Literal["majority", "positive"] = "majority"
) -> Tensor:
    """TIES-Merging's election and disjoint merge (arXiv:2306.01708) of vectors (P,) that are trimmed already: (P,).

    The elected sign of an entry is the sign of the sum over vectors, taken in float64, since rounding that depends on
    the order of tasks must not turn a sign. Entries that agree with it are combined.

    Args:
        vectors: of one length P and dtype.
        combine: ``mean`` over those that agree and are not 0, their ``sum``, or the ``max`` magnitude.
        cancelled: the sign where the sum is 0: that of the sum of all elected signs (negative if that is 0 too), or +.
    """
    import torch

    def blocks() -> Iterator[tuple[Tensor, ...]]:
        return zip(*(v.split(BLOCK) for v in vectors), strict=True)

    sign = torch.cat([_total(parts).sign_().to(torch.int8) for parts in blocks()])
    default = 1 if cancelled == "positive" or bool(sign.sum(dtype=torch.int64) > 0) else -1
    sign.masked_fill_(sign == 0, default)
    signs = (part.to(vectors[0]) for part in sign.split(BLOCK))
    return torch.cat([_combine(parts, s, combine) for parts, s in zip(blocks(), signs, strict=True)])


def _total(parts: Sequence[Tensor]) -> Tensor:
    import torch

    total = torch.zeros_like(parts[0], dtype=torch.float64)
    for part in parts:
        total += part
    return total


def _combine(parts: Sequence[Tensor], sign: Tensor, combine: Combine) -> Tensor:
    import torch

    merged, count = torch.zeros_like(sign), torch.zeros_like(sign)
    for part in parts:
        agrees = (part * sign).clamp_(min=0)
        if combine == "max":
            torch.maximum(merged, agrees, out=merged)
            continue
        merged += agrees
        if combine == "mean":
            count += agrees.sign_()
    return merged.div_(count.clamp_(min=1)).mul_(sign)
