"""What figures share: a look for each method, panels of named lines, captions, and files that are always the same.

A look is colour, marker and dashes, each with a period of its own, so that methods stay apart without colour. Lines are
named at their end, in the order of their height there, so that a panel with many methods is read without a legend.
"""

from __future__ import annotations

import io
import math
import statistics
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from bench.report.rows import BLOCK, Row, footnotes, grouped, measured_rows, stream_title

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "*", "h", "d")  # 13: no common period with the ten colours
DASHES: tuple[Any, ...] = ("", (4, 1.5), (1, 1), (5, 1, 1, 1))
PANEL = (5.4, 3.3)  # inches, labels included; higher where there are many
LABEL = 0.145  # inches of height that one label needs
INDIGO, OLIVE = (0.2, 0.1, 0.4), (0.5, 0.5, 0.0)  # for a pink and a yellow that are lost on white paper
CHARACTERS = 18  # of a caption, an inch
SPREAD = "Mean with one sample standard deviation over"

Points = Sequence[tuple[float, float]]


class LeftOut(Exception):
    """Why a figure cannot be drawn, in a few words."""


@dataclass(frozen=True)
class Look:
    """How a method is drawn in every panel of a report."""

    colour: Any
    marker: str
    dashes: Any = ""


@dataclass(frozen=True)
class LinePanel:
    """One panel: ``series`` are each label's points, those of all repeats together."""

    title: str
    xlabel: str
    ylabel: str
    series: Mapping[str, Points]
    xticks: Sequence[float] = ()  #: none: whole numbers
    digits: int = 1  #: of the number after a line's name


def measured(rows: Iterable[Row], needs: str) -> list[Row]:
    """:func:`bench.report.rows.measured_rows`; raises :class:`LeftOut` where there is none."""
    rows = measured_rows(rows, needs)
    if not rows:
        raise LeftOut("there is no measured cell to show")
    return rows


def after_every_task(rows: Iterable[Row], *needs: str) -> tuple[list[Row], str]:
    """The rows with a value under all of ``needs``, and the caption's sentence on methods evaluated only at the end.

    Raises :class:`LeftOut` where there is no such row.
    """
    every = measured(rows, "a_last")
    known = [row for row in every if all(row[name] is not None for name in needs)]
    if not known:
        raise LeftOut("no cell was evaluated after every task")
    at_the_end = dict.fromkeys(row["label"] for row in every if row["learn_acc"] is None)
    return known, f" Evaluated only at the end, so not shown: {', '.join(at_the_end)}." if at_the_end else ""


def looks(labels: Sequence[str]) -> dict[str, Look]:
    """By label. Fifty labels are told apart by marker and dashes, 130 by marker and colour."""
    import seaborn as sns

    colours = sns.color_palette("colorblind")
    colours[6], colours[8] = INDIGO, OLIVE
    return {
        label: Look(colours[i % len(colours)], MARKERS[i % len(MARKERS)], DASHES[i % len(DASHES)])
        for i, label in enumerate(labels)
    }


def short_title(row: Row) -> str:
    """The stream in two lines, for narrow panels."""
    return stream_title(row).replace(", protocol", ",\nprotocol", 1)


def caption(text: str, rows: Sequence[Row]) -> str:
    """The text, how many repeats stand behind a point ("{n}" in the text), and what the marks mean."""
    counts = sorted({len(group) for group in grouped(rows, (*BLOCK, "label")).values()})
    n = f"n = {counts[0]}" + ("" if len(counts) == 1 else f" to {counts[-1]}")
    counted = text.replace("{n}", f"{n} repeat" + ("" if counts == [1] else "s"))
    return "\n".join([counted, *(f"{mark}." for mark in footnotes(rows))])


def line_panels(panels: Sequence[LinePanel], style: Mapping[str, Look], text: str) -> Any:
    """A figure of panels, one line a label: the mean of its points at each x, with a band of one sample sd."""
    from matplotlib.ticker import MaxNLocator

    columns = min(2, len(panels))
    height = max(PANEL[1], LABEL * max(len(panel.series) for panel in panels) + 0.9)
    figure, grid = sheet(PANEL[0] * columns, height * math.ceil(len(panels) / columns), len(panels), columns)
    for axes, panel in zip(grid, panels, strict=True):
        for label, points in panel.series.items():
            _line(axes, points, style[label])
        axes.set_title(panel.title, fontsize=9, loc="left")
        axes.set(xlabel=panel.xlabel, ylabel=panel.ylabel)
        if panel.xticks:
            axes.set_xticks(panel.xticks, [f"{tick:g}" for tick in panel.xticks])
        else:
            low, high = axes.get_xlim()
            axes.set_xlim(min(low, math.ceil(low) - 0.2), max(high, math.floor(high) + 0.2))
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10, min_n_ticks=1))
        _name_lines(axes, panel, style, gap=LABEL / (height - 0.9))
    write_caption(figure, text)
    return figure


def _line(axes: Any, points: Points, look: Look) -> None:
    """Means and, where there are repeats at every x, the band."""
    at: dict[float, list[float]] = {}
    for x, y in sorted(points):
        at.setdefault(x, []).append(y)
    means = [statistics.fmean(ys) for ys in at.values()]
    axes.plot(
        list(at),
        means,
        color=look.colour,
        marker=look.marker,
        markersize=5.5,
        markeredgecolor="white",
        markeredgewidth=0.4,
        linewidth=1.3,
        linestyle=(0, look.dashes) if look.dashes else "-",
    )
    if len(at) > 1 and min(map(len, at.values())) > 1:
        band = [statistics.stdev(ys) for ys in at.values()]
        low, high = ([m + sign * sd for m, sd in zip(means, band, strict=True)] for sign in (-1, 1))
        axes.fill_between(list(at), low, high, color=look.colour, alpha=0.1, linewidth=0)


def sheet(width: float, height: float, panels: int, columns: int, **options: Any) -> tuple[Any, list[Any]]:
    """An empty figure (inches) and its panels, row by row; places beyond the last panel stay blank."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    grid = figure.subplots(math.ceil(panels / columns), columns, squeeze=False, **options).ravel()
    for axes in grid[panels:]:
        axes.set_axis_off()
    return figure, list(grid[:panels])


def write_caption(figure: Any, text: str) -> None:
    """Small print below the panels, wrapped to the figure's width."""
    width = int(figure.get_figwidth() * CHARACTERS)
    figure.supxlabel("\n".join(textwrap.fill(line, width) for line in text.split("\n")), fontsize=7, x=0.01, ha="left")


def _name_lines(axes: Any, panel: LinePanel, style: Mapping[str, Look], gap: float) -> None:
    """Marker, name and last mean to the right of the panel, joined to the line's end by a thin leader."""
    axes.set_ylim(axes.get_ylim())
    place_of, data_of = axes.transData + axes.transAxes.inverted(), axes.transAxes + axes.transData.inverted()
    ends = {}
    for label, points in panel.series.items():
        last = max(x for x, _ in points)
        ends[label] = last, statistics.fmean(y for x, y in points if x == last)
    names = sorted(ends, key=lambda name: ends[name][1])
    end = max(x for x, _ in ends.values())
    wanted = [float(place_of.transform(ends[name])[1]) for name in names]
    across = axes.get_yaxis_transform()  # x as a fraction of the panel, y in data
    for name, place in zip(names, spread(wanted, gap), strict=True):
        y = float(data_of.transform((0, place))[1])
        look = style[name]
        axes.annotate(
            "",
            xy=ends[name],
            xytext=(1.05, y),
            textcoords=across,
            arrowprops={"arrowstyle": "-", "color": look.colour, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 4}
            | ({} if ends[name][0] == end else {"linestyle": ":"}),
        )
        axes.plot(
            [1.065],
            [y],
            transform=across,
            clip_on=False,
            color=look.colour,
            marker=look.marker,
            markersize=5,
            markeredgecolor="white",
            markeredgewidth=0.4,
        )
        text = f"{name}  {ends[name][1]:.{panel.digits}f}" + ("" if ends[name][0] == end else f" at {ends[name][0]:g}")
        axes.text(1.09, y, text, transform=across, va="center", fontsize=7.5)


def spread(places: Sequence[float], gap: float) -> list[float]:
    """Ascending places in 0..1 moved as little as can be (least squares) so that neighbours are ``gap`` apart.

    Without its share of the gaps, place i must not lie below place i-1: that is isotonic regression.
    """
    from sklearn.isotonic import isotonic_regression

    room = max(0.0, 1 - gap * (len(places) - 1))
    closed = isotonic_regression([place - gap * i for i, place in enumerate(places)], y_min=0.0, y_max=room)
    return [float(place) + gap * i for i, place in enumerate(closed)]


@contextmanager
def paper_style() -> Iterator[None]:
    """Settings that hold while a figure is drawn and saved."""
    import matplotlib
    import seaborn as sns

    # 42: fonts as TrueType, so that text in the PDF can be searched and edited; some venues refuse Type 3.
    with sns.axes_style("whitegrid"), matplotlib.rc_context({"pdf.fonttype": 42, "font.size": 9}):
        yield


def rendered(figure: Any) -> dict[str, bytes]:
    """The figure as ``{"png": ..., "pdf": ...}``, the same bytes every time."""
    png = _saved(figure, "png", dpi=150)
    figure.set_layout_engine("none")  # laid out once: to do so takes longer than to draw
    return {"png": png, "pdf": _saved(figure, "pdf", metadata={"CreationDate": None})}


def _saved(figure: Any, kind: str, **options: Any) -> bytes:
    data = io.BytesIO()
    figure.savefig(data, format=kind, **options)
    return data.getvalue()
