"""Scatter plots, a point a method: stability against plasticity, and accuracy against what it costs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from bench.report.figures.drawing import (
    LABEL,
    SPREAD,
    LeftOut,
    Look,
    after_every_task,
    caption,
    looks,
    measured,
    sheet,
    short_title,
    write_caption,
)
from bench.report.rows import BLOCK, Row, grouped, stream_title

SIDE = (3.1, 3.0)  # inches of a panel
FLAT = 0.06  # share of a panel's width within which an iso-line's label is not drawn


def stability(rows: Sequence[Row], labels: Sequence[str]) -> Any:
    """Learning accuracy (to the right: plastic) against later drift (up: stable), a panel a stream.

    Of task means, A_last is their difference, so lines of equal A_last are straight and drawn.
    """
    shown, missing = after_every_task(rows, "learn_acc", "drift")
    streams = list(grouped(shown, BLOCK).values())
    figure, panels = _sheet(len(streams), min(3, len(streams)), shown)
    style = looks(labels)
    for axes, stream in zip(panels, streams, strict=True):
        _points(axes, stream, "learn_acc", "drift", style)
        axes.set_title(short_title(stream[0]), fontsize=8, loc="left")
        axes.set(xlabel="learning accuracy (%)", ylabel="later drift (points, upside down)")
        axes.margins(0.1)
        axes.invert_yaxis()
        _iso_lines(axes)
    _legend(figure, shown, style)
    text = f"{SPREAD} {{n}}; task means. Dotted: equal A_last, which is learning accuracy minus later drift."
    write_caption(figure, caption(text + missing, shown))
    return figure


def costs(rows: Sequence[Row], labels: Sequence[str]) -> Any:
    """A_last against carried bytes and against seconds (training alone plus merging), two panels a stream."""
    shown = [row for row in measured(rows, "a_last") if None not in (row["carried_bytes"], row["seconds"])]
    if not shown:
        raise LeftOut("no cell recorded what it cost")
    from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullLocator

    streams = list(grouped(shown, BLOCK).values())
    figure, panels = _sheet(2 * len(streams), 2, shown)
    style = looks(labels)
    for i, stream in enumerate(streams):
        carried, seconds = panels[2 * i : 2 * i + 2]
        _points(carried, stream, "carried_bytes", "a_last", style)
        sizes = [math.log10(row["carried_bytes"]) for row in stream if row["carried_bytes"]] or [0.0]
        lowest, highest = math.floor(min(sizes)), math.ceil(max(sizes))
        # Nothing carried is a place of its own at the left, which a logarithm would not have.
        carried.set_xscale("symlog", linthresh=10**lowest, linscale=0.5)
        step = 1 + (highest - lowest) // 5
        carried.set_xticks([0, *(10**k for k in range(lowest, max(highest, lowest + 1) + 1, step))])
        carried.xaxis.set_minor_locator(NullLocator())
        carried.xaxis.set_major_formatter(EngFormatter(unit="B", sep=" "))
        carried.set(xlabel="carried across a task boundary", ylabel="$A_{last}$ (%)")
        carried.set_title(stream_title(stream[0]), fontsize=8, loc="left")
        _points(seconds, stream, "seconds", "a_last", style)
        seconds.set_xscale("log")
        low, high = seconds.get_xlim()
        seconds.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if high > 5 * low > 0 else MaxNLocator(4))
        seconds.xaxis.set_minor_locator(NullLocator())
        seconds.xaxis.set_major_formatter(EngFormatter(unit="s", sep=" "))
        seconds.set(xlabel="training alone and merging", ylabel="$A_{last}$ (%)")
    _legend(figure, shown, style)
    text = (
        f"{SPREAD} {{n}}. Carried: what crosses a task boundary beyond pretrained and served weights and heads. "
        "Seconds depend on the machine, and on what else ran on it."
    )
    write_caption(figure, caption(text, shown))
    return figure


def _sheet(panels: int, columns: int, rows: Sequence[Row]) -> tuple[Any, list[Any]]:
    """Panels with room for a legend to the right of them."""
    lines = math.ceil(panels / columns)
    height = max(SIDE[1] * lines, (LABEL + 0.04) * len(grouped(rows, ("label",)))) + 0.5
    return sheet(SIDE[0] * columns + 1.6, height, panels, columns)


def _points(axes: Any, stream: Sequence[Row], x: str, y: str, style: Mapping[str, Look]) -> None:
    """Means with crosses of one sample sd."""
    for (label,), repeats in grouped(stream, ("label",)).items():
        across, up = [row[x] for row in repeats], [row[y] for row in repeats]
        look = style[label]
        axes.errorbar(
            statistics.fmean(across),
            statistics.fmean(up),
            xerr=statistics.stdev(across) if len(repeats) > 1 else None,
            yerr=statistics.stdev(up) if len(repeats) > 1 else None,
            color=look.colour,
            elinewidth=0.7,
            marker=look.marker,
            markersize=6.5,
            markeredgecolor="black",
            markeredgewidth=0.5,
            linestyle="none",
            label=label,
        )


def _iso_lines(axes: Any) -> None:
    """Lines of equal difference x - y, named where they leave the panel above."""
    from matplotlib.ticker import MaxNLocator

    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    for value in MaxNLocator(nbins=6).tick_values(left - bottom, right - top):
        axes.axline((value, 0), slope=1, color="0.6", linewidth=0.6, linestyle=":", zorder=0)
        place = (value + top - left) / (right - left)
        if FLAT < place < 1 - FLAT:
            axes.annotate(
                f"{value:g}", (place, 0.985), xycoords="axes fraction", fontsize=6, color="0.4", ha="left", va="top"
            )
    axes.set(xlim=(left, right), ylim=(bottom, top))


def _legend(figure: Any, rows: Sequence[Row], style: Mapping[str, Look]) -> None:
    """Every method once, in the order of the tables."""
    handles: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle[0])  # the marker without its cross
    names = [label for label in style if label in handles]
    figure.legend(
        [handles[name] for name in names], names, loc="outside right upper", fontsize=7.5, frameon=False, numpoints=1
    )
