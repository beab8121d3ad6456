"""Which classes come when, and where tasks are cut. Torch-free: the planner asks too."""

from __future__ import annotations

from itertools import pairwise


def class_order(classes: int, seed: int) -> list[int]:
    """The classes in the order in which they arrive: ``numpy.random.RandomState(seed).permutation``, as most of the
    field's code has it.
    """
    import numpy as np

    return [int(c) for c in np.random.RandomState(seed).permutation(classes)]


def boundaries(classes: int, n_tasks: int) -> list[range]:
    """Head columns of each task: floor(classes * i / T) boundaries, so that no class is dropped where T does not
    divide the class count.
    """
    edges = [classes * i // n_tasks for i in range(n_tasks + 1)]
    return [range(a, b) for a, b in pairwise(edges)]
