"""How cells are cut into trials, one process each."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from bench.plan.cell import Cell


def pack(cells: Sequence[Cell], slots: int) -> list[list[Cell]]:
    """Cells into trials (one process each): cells that share trainings together, and enough trials to fill the slots.

    A worker's imports cost seconds, so a trial is a whole stream (all methods of one dataset, T and repeat) where
    there are streams enough; with fewer streams than twice the slots each is split, the costly chains first.
    """
    streams: dict[Any, dict[Any, list[Cell]]] = {}
    for cell in cells:
        stream = (
            cell.dataset.key,
            cell.n_tasks,
            cell.protocol.variant_of or cell.protocol.key,  # two heads of one protocol share their trainings
            cell.class_order_seed,
            cell.run_seed,
            cell.eval_split,
        )
        last = cell.train_keys.get(cell.trained_tasks[-1], cell.id)  # a replayed cell trains nothing
        streams.setdefault(stream, {}).setdefault(last, []).append(cell)
    parts = max(1, math.ceil(2 * slots / max(1, len(streams))))
    trials: list[list[Cell]] = []
    for chains in streams.values():
        for cells_of_one in chains.values():
            if len(cells_of_one) > 1:
                cells_of_one[:] = [dataclasses.replace(cell, keep_trainings=True) for cell in cells_of_one]
        bins: list[list[Cell]] = [[] for _ in range(min(parts, len(chains)))]
        cost = [0.0] * len(bins)
        for chain in sorted(chains.values(), key=lambda c: -c[0].opt_steps()):
            lightest = cost.index(min(cost))
            bins[lightest] += chain
            cost[lightest] += chain[0].opt_steps() * (1 + 0.1 * len(chain))
        trials += bins
    return sorted(trials, key=lambda trial: -sum(cell.opt_steps() for cell in trial))
