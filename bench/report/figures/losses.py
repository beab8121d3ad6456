"""Where the accuracy goes: learning accuracy, what the merge costs, what later tasks cost; a row of bars a method."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from bench.report.figures.drawing import SPREAD, after_every_task, caption, sheet, write_caption
from bench.report.rows import BLOCK, Row, grouped, stream_title

COLUMNS = {
    "learn_acc": "learning accuracy (%)",
    "merge_drop": "merge drop (points)",
    "drift": "later drift (points)",
}
BAR = 0.17  # inches of height that one method needs


def losses(rows: Sequence[Row], labels: Sequence[str]) -> Any:
    """Three panels a stream, methods from the best A_last (task mean) down.

    Of task means, A_last = learning accuracy - later drift, and the accuracy before merging is learning accuracy +
    merge drop: so the panels account for all that is lost.
    """
    shown, missing = after_every_task(rows, "learn_acc")
    streams = list(grouped(shown, BLOCK).values())
    heights = [BAR * len(grouped(stream, ("label",))) + 0.75 for stream in streams]
    figure, grid = sheet(
        7.4, sum(heights) + 0.5, 3 * len(streams), 3, sharey="row", gridspec_kw={"height_ratios": heights}
    )
    for i, stream in enumerate(streams):
        _draw(grid[3 * i : 3 * i + 3], stream)
    for axes, name in zip(grid[-3:], COLUMNS.values(), strict=True):
        axes.set_xlabel(name)
    text = (
        f"{SPREAD} {{n}}; task means. After each name: A_last (%), which is learning accuracy minus later drift. "
        "Below 0: the merge, or a later task, helped. Not defined: heads fitted after the merge."
    )
    write_caption(figure, caption(text + missing, shown))
    return figure


def _draw(panels: Sequence[Any], stream: Sequence[Row]) -> None:
    methods = grouped(stream, ("label",))
    last = {label: statistics.fmean(r["a_last_taskmean"] for r in repeats) for (label,), repeats in methods.items()}
    order = sorted(last, key=last.__getitem__)
    for axes, name, shade in zip(panels, COLUMNS, ("#0173b2", "#de8f05", "#999999"), strict=True):
        for y, label in enumerate(order):
            values = [row[name] for row in methods[(label,)] if row[name] is not None]
            if not values:
                axes.text(0, y, " not defined", va="center", ha="left", fontsize=6, color="0.4")
                continue
            sd = statistics.stdev(values) if len(values) > 1 else None
            bars = {"ecolor": "black", "error_kw": {"elinewidth": 0.7, "capsize": 1.5, "capthick": 0.7}}
            axes.barh(y, statistics.fmean(values), height=0.72, color=shade, xerr=sd, **bars)
        axes.axvline(0, color="black", linewidth=0.7)
        axes.grid(visible=False, axis="y")
        axes.tick_params(labelbottom=True, labelsize=7.5)
    panels[0].set_yticks(range(len(order)), [f"{label}  {last[label]:.1f}" for label in order], fontsize=7.5)
    panels[0].set_ylim(-0.6, len(order) - 0.4)
    panels[0].set_title(stream_title(stream[0]), fontsize=9, loc="left")
