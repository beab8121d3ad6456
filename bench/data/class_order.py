"""Which classes come when, and where tasks are cut. Torch-free: the planner asks too."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from bench.common.errors import UserError


def class_order(classes: int, seed: int, kind: str | Sequence[int] = "mt19937", what: str = "classes") -> list[int]:
    """The classes in the order in which they arrive.

    Args:
        classes: how many there are.
        seed: ``class_order_seed``; ``identity`` and a list do not depend on it.
        kind: ``mt19937``: ``numpy.random.RandomState(seed).permutation``, as most of the field's code has it;
            ``pcg64``: ``numpy.random.default_rng(seed).shuffle``; ``identity``; or the order itself.
        what: what is ordered, for the message.

    Raises:
        UserError: a list that is no permutation of the classes.
    """
    import numpy as np

    if not isinstance(kind, str):
        if sorted(kind) != list(range(classes)):
            raise UserError(
                f"protocol: class_order: {len(kind)} {what} are listed, {len(set(kind))} of them different; "
                f"list each of 0 to {classes - 1} once"
            )
        return list(kind)
    order = np.arange(classes)
    if kind == "mt19937":
        order = np.random.RandomState(seed).permutation(classes)
    elif kind == "pcg64":
        np.random.default_rng(seed).shuffle(order)
    return [int(c) for c in order]


def boundaries(classes: int, n_tasks: int) -> list[range]:
    """Head columns of each task: floor(classes * i / T) boundaries, so that no class is dropped where T does not
    divide the class count.
    """
    edges = [classes * i // n_tasks for i in range(n_tasks + 1)]
    return [range(a, b) for a, b in pairwise(edges)]
