"""What several sparsifying rules share, as pure functions on vectors: trim by magnitude, elect signs, merge."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

Combine = Literal["mean", "sum", "max"]


def trim(vector: Tensor, keep: int) -> Tensor:
    """The vector (P,) with its ``keep`` entries of largest magnitude, zero elsewhere; ties are kept by index order."""
    import torch

    if keep >= vector.numel():
        return vector.clone()
    if keep == 0:
        return torch.zeros_like(vector)
    magnitude = vector.abs()
    # kthvalue is linear in P; a sort of a hundred million numbers is not wanted at every task.
    threshold = magnitude.kthvalue(vector.numel() - keep + 1).values
    kept = magnitude > threshold
    tied = (magnitude == threshold).nonzero()[:, 0][: keep - int(kept.sum())]
    kept[tied] = True
    return vector * kept


def elect_and_merge(vectors: Sequence[Tensor], combine: Combine = "mean") -> Tensor:
    """TIES-Merging's election and disjoint merge (arXiv:2306.01708) of vectors (P,) that are trimmed already.

    The elected sign of an entry is the sign of the sum over vectors, and where that is 0 the sign of the sum of all
    elected signs; entries that agree with it are combined (``mean`` over those that are not 0).
    """
    import torch

    total = torch.zeros_like(vectors[0])
    for v in vectors:
        total += v
    sign = total.sign()
    majority = sign.sum().sign()
    positive = sign.where(sign != 0, majority) > 0
    merged, count = torch.zeros_like(total), torch.zeros_like(total)
    for v in vectors:  # one at a time: T copies of a large model would not fit side by side
        agrees = v.where((v > 0) == positive, 0)
        if combine == "max":
            merged = torch.where(agrees.abs() > merged.abs(), agrees, merged)
        else:
            merged += agrees
            count += agrees != 0
    return merged / count.clamp_min(1) if combine == "mean" else merged
