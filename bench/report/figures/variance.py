"""How much of the spread of A_last is the class order, how much the run, and how much the test images drawn.

Wanted: A_last of every one of k runs (``run_seed``) under each of a class orders (``class_order_seed``), 3 x 3 say. A
run's seed means something else under another order, so runs are nested in orders, y_or = mu + O_o + R_or, and the
components follow by the method of moments (one-way random effects; Searle, Casella, McCulloch: Variance Components):

    MS_O = k sum_o (y_o. - y_..)^2 / (a - 1),     MS_R = sum_or (y_or - y_o.)^2 / (a (k - 1)),
    var_run = MS_R,     var_order = max(0, (MS_O - MS_R) / k).

All cells are evaluated on the same n test images, so which images were drawn is no part of that spread. It is what
another draw of n images would add, binomial as in arXiv:2103.03098: var_test = mean over cells of p (100 - p) / n.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.report.figures.drawing import LeftOut, caption, measured, sheet, write_caption
from bench.report.rows import BLOCK, Row, grouped, stream_title

BARS = {
    "order": ("class order", "#0173b2", ""),
    "run": ("run", "#de8f05", "////"),
    "test": ("test images", "0.75", "..."),
}
HEIGHT = 0.42  # inches of a method's three bars

Grid = Mapping[tuple[int, int], float]  #: A_last by (class_order_seed, run_seed)


@dataclass(frozen=True)
class Split:
    """Standard deviations in points; only their squares add up."""

    order: float
    run: float
    test: float
    orders: int
    runs: int


def split(values: Grid, test_images: int) -> Split | None:
    """The components of the largest full grid of orders with the same runs; ``None`` without 2 x 2 values."""
    runs_of: dict[int, set[int]] = {}
    for order, run in values:
        runs_of.setdefault(order, set()).add(run)
    full = {order: runs for order, runs in runs_of.items() if len(runs) > 1}
    common = sorted(set.intersection(*full.values())) if full else []
    if len(full) < 2 or len(common) < 2:
        return None
    table = [[values[order, run] for run in common] for order in sorted(full)]
    means = [statistics.fmean(row) for row in table]
    within = statistics.fmean(statistics.variance(row) for row in table)
    between = statistics.variance(means) - within / len(common)
    sampling = statistics.fmean(y * (100 - y) / test_images for row in table for y in row)
    return Split(math.sqrt(max(0.0, between)), math.sqrt(within), math.sqrt(sampling), len(full), len(common))


def variance(rows: Sequence[Row], labels: Sequence[str]) -> Any:
    """Three bars a method: the standard deviation of A_last by class order, by run, and by the test images drawn."""
    splits: list[tuple[Row, dict[str, Split]]] = []
    for stream in grouped(measured(rows, "a_last"), BLOCK).values():
        by_label = {}
        for (label,), repeats in grouped(stream, ("label",)).items():
            cells = {(row["class_order_seed"], row["run_seed"]): row["a_last"] for row in repeats}
            components = split(cells, repeats[0]["test_images"])
            if components:
                by_label[label] = components
        if by_label:
            splits.append((stream[0], {label: by_label[label] for label in labels if label in by_label}))
    if not splits:
        raise LeftOut("no method was run with several runs under each of several class orders")
    heights = [HEIGHT * len(by_label) + 0.9 for _, by_label in splits]
    figure, panels = sheet(5.6, sum(heights) + 0.5, len(splits), 1, gridspec_kw={"height_ratios": heights}, sharex=True)
    for axes, (row, by_label) in zip(panels, splits, strict=True):
        _draw(axes, row, by_label)
    panels[-1].set_xlabel("standard deviation of $A_{last}$ (points)")
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper right", ncols=3, fontsize=7.5, frameon=False)
    shown = [row for row in rows if any(row["label"] in by_label for _, by_label in splits)]
    text = (
        "After each name: class orders x runs under each, from which both components are estimated; few of them make "
        "rough estimates, and a negative one is shown as 0. Test images: binomial, what another draw of as many would "
        "add; all cells share the images, so it is no part of the other two. Only squares of the bars add up."
    )
    write_caption(figure, caption(text, shown))
    return figure


def _draw(axes: Any, row: Row, by_label: Mapping[str, Split]) -> None:
    for i, (name, (label, colour, hatch)) in enumerate(BARS.items()):
        axes.barh(
            [y + 0.26 * (1 - i) for y in range(len(by_label))],
            [getattr(components, name) for components in by_label.values()][::-1],
            height=0.25,
            color=colour,
            edgecolor="black",
            linewidth=0.5,
            hatch=hatch,
            label=label,
        )
    names = [f"{label}  {components.orders} x {components.runs}" for label, components in by_label.items()]
    axes.set_yticks(range(len(by_label)), names[::-1], fontsize=7.5)
    axes.grid(visible=False, axis="y")
    axes.set_title(stream_title(row), fontsize=9, loc="left")
