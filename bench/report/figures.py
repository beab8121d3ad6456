"""Accuracy over tasks: one panel a stream, one line a method, mean with a band of ± one sample sd over the repeats.

Every line is named at its end, in the order of A_T there, so that a panel with many methods is read without a legend.
"""

from __future__ import annotations

import io
import math
import statistics
from collections.abc import Sequence
from typing import Any

from bench.report.frame import BLOCK, MEASURED, Row, footnotes, grouped, stream_title

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "*", "h", "d", "H", "8")
DASHES: tuple[Any, ...] = ("", (4, 1.5), (1, 1), (5, 1, 1, 1))
PANEL = (5.4, 3.3)  # inches, labels included; higher where there are many
LABEL = 0.145  # inches of height that one label needs


def accuracy_over_tasks(rows: Sequence[Row], labels: Sequence[str]) -> dict[str, bytes]:
    """The figure as ``{"png": ..., "pdf": ...}``.

    Args:
        rows: labelled rows with their ``curve`` (A_1..A_T, sample-weighted, percent); ``{}`` when none is measured.
        labels: all labels, in a fixed order: a label keeps its colour, marker and dashes in every panel.

    A method that is evaluated only at the end (joint training) is a single marker there.
    """
    measured = [row for row in rows if row["status"] in MEASURED and row.get("curve")]
    if not measured:
        return {}

    import matplotlib
    import seaborn as sns
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    streams = list(grouped(measured, BLOCK).values())
    columns = min(2, len(streams))
    lines = math.ceil(len(streams) / columns)
    height = max(PANEL[1], LABEL * len(labels) + 0.9)
    style = _style(labels, sns.color_palette("colorblind"))
    # 42: fonts as TrueType, so that text in the PDF can be searched and edited; some venues refuse Type 3.
    with sns.axes_style("whitegrid"), matplotlib.rc_context({"pdf.fonttype": 42, "font.size": 9}):
        figure = Figure(figsize=(PANEL[0] * columns, height * lines), layout="constrained")
        panels = figure.subplots(lines, columns, squeeze=False).ravel()
        for axes, stream in zip(panels, streams, strict=False):
            sns.lineplot(
                _points(stream),
                x="t",
                y="accuracy",
                hue="label",
                style="label",
                errorbar="sd",
                err_kws={"alpha": 0.1, "linewidth": 0},
                markersize=5.5,
                markeredgewidth=0.4,
                linewidth=1.3,
                legend=False,
                ax=axes,
                **style,
            )
            axes.set_title(stream_title(stream[0]), fontsize=9)
            axes.set(xlabel="tasks learnt, t", ylabel="accuracy over seen classes, $A_t$ (%)")
            axes.set_xlim(0.8, stream[0]["n_tasks"] + 0.2)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10))
            _name_lines(axes, stream, style, gap=LABEL / (height - 0.9))
        for axes in panels[len(streams) :]:
            axes.set_axis_off()
        notes = footnotes(measured)
        if notes:
            figure.supxlabel("\n".join(notes), fontsize=7, x=0.01, ha="left")
        return rendered(figure)


def _points(stream: Sequence[Row]) -> dict[str, list[Any]]:
    points = [
        (t, value, row["label"]) for row in stream for t, value in enumerate(row["curve"], start=1) if value is not None
    ]
    return dict(zip(("t", "accuracy", "label"), map(list, zip(*points, strict=True)), strict=True))


def _style(labels: Sequence[str], colours: Sequence[Any]) -> dict[str, dict[str, Any]]:
    """Colour, marker and dashes by label, each with a period of its own, so that lines stay apart without colour."""
    return {
        "palette": {label: colours[i % len(colours)] for i, label in enumerate(labels)},
        "markers": {label: MARKERS[i % len(MARKERS)] for i, label in enumerate(labels)},
        "dashes": {label: DASHES[i % len(DASHES)] for i, label in enumerate(labels)},
    }


def _name_lines(axes: Any, stream: Sequence[Row], style: dict[str, dict[str, Any]], gap: float) -> None:
    """Marker, name and A_T to the right of the panel, joined to the line's end by a thin leader."""
    low, high = axes.get_ylim()
    axes.set_ylim(low, high)
    ends = {
        label: statistics.fmean(row["curve"][-1] for row in repeats)
        for (label,), repeats in grouped(stream, ("label",)).items()
    }
    names = sorted(ends, key=ends.__getitem__)
    wanted = [(ends[name] - low) / (high - low) for name in names]
    across = axes.get_yaxis_transform()  # x as a fraction of the panel, y in data
    for name, place in zip(names, spread(wanted, gap), strict=True):
        y = low + place * (high - low)
        colour, last = style["palette"][name], stream[0]["n_tasks"]
        axes.annotate(
            "",
            xy=(last, ends[name]),
            xytext=(1.05, y),
            textcoords=across,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 4},
        )
        axes.plot(
            [1.065],
            [y],
            transform=across,
            clip_on=False,
            color=colour,
            marker=style["markers"][name],
            markersize=5,
            markeredgecolor="white",
            markeredgewidth=0.4,
        )
        axes.text(1.09, y, f"{name}  {ends[name]:.1f}", transform=across, va="center", fontsize=7.5)


def spread(places: Sequence[float], gap: float) -> list[float]:
    """Ascending places in 0..1 moved as little as can be (least squares) so that neighbours are ``gap`` apart.

    Without its share of the gaps, place i must not lie below place i-1: that is isotonic regression.
    """
    from sklearn.isotonic import isotonic_regression

    room = max(0.0, 1 - gap * (len(places) - 1))
    closed = isotonic_regression([place - gap * i for i, place in enumerate(places)], y_min=0.0, y_max=room)
    return [float(place) + gap * i for i, place in enumerate(closed)]


def rendered(figure: Any) -> dict[str, bytes]:
    """The figure as ``{"png": ..., "pdf": ...}``, the same bytes every time."""
    return {"png": _saved(figure, "png", dpi=200), "pdf": _saved(figure, "pdf", metadata={"CreationDate": None})}


def _saved(figure: Any, kind: str, **options: Any) -> bytes:
    data = io.BytesIO()
    figure.savefig(data, format=kind, **options)
    return data.getvalue()
