"""The heat maps of the factorial as a figure: a cell a rule and column, with its mean and interval in it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from bench.report.inference.factorial import HeatMap, Reached
from bench.report.rows import stream_title

CELL, GAP = (0.88, 0.4), 0.12  # inches; the gap, between groups, in cells
PLACES = {1: (0.5,), 2: (0.36, 0.72), 3: (0.24, 0.57, 0.82)}  # of a cell's lines of text, from its top


def figure(maps: Sequence[HeatMap]) -> dict[str, bytes]:
    """The heat maps below one another as ``{"png": ..., "pdf": ...}``; ``{}`` when nothing is measured.

    Cividis: even in lightness, so that it reads the same without colour vision and in grey print.
    """
    maps = [one for one in maps if one.n]
    if not maps:
        return {}

    import matplotlib
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    from bench.report.figures.drawing import rendered

    means = [cell.interval[0] for one in maps for cell in one.cells.values() if cell.values]
    # Most cells are close: one rule that falls far behind must not take the colours from all others.
    low = max(min(means), max(means) - 3 * (max(means) - statistics.median(means)) - 1)
    scale = ScalarMappable(Normalize(low, max(max(means), low + 1)), matplotlib.colormaps["cividis"])
    width = max(len(one.columns) for one in maps) * CELL[0] + 2.6
    heights = [(sum(map(len, one.sections.values())) + 0.8 * len(one.sections)) * CELL[1] + 1.3 for one in maps]
    with matplotlib.rc_context({"pdf.fonttype": 42, "font.size": 8, "hatch.linewidth": 0.6}):
        drawn = Figure(figsize=(width, sum(heights)), layout="constrained")
        panels = drawn.subplots(len(maps), 1, squeeze=False, gridspec_kw={"height_ratios": heights}).ravel()
        for axes, one in zip(panels, maps, strict=True):
            _draw(axes, one, scale)
        below = "min" if low > min(means) else "neither"
        bar = drawn.colorbar(scale, ax=list(panels), fraction=0.03, pad=0.015, aspect=40, extend=below)
        bar.set_label("$A_{last}$ (%)")
        bar.outline.set_visible(False)
        return rendered(drawn)


def _draw(axes: Any, one: HeatMap, scale: Any) -> None:
    import textwrap

    groups = list(dict.fromkeys(column.group for column in one.columns))
    across = {column: i + GAP * groups.index(column.group) for i, column in enumerate(one.columns)}
    right, y = max(across.values()) + 1, 0.0
    for section, rules in one.sections.items():
        axes.text(0, y + 0.72, section, fontsize=8, fontweight="bold", ha="left")
        y += 0.8
        for rule in rules:
            axes.text(-0.08, y + 0.5, rule, ha="right", va="center", fontsize=8)
            for column, x in across.items():
                _draw_cell(axes, one.cells.get((rule, column)), one.n, x, y, scale)
            y += 1
    for group in groups:
        places = [x for column, x in across.items() if column.group == group]
        axes.text((places[0] + places[-1] + 1) / 2, -0.62, group, ha="center", va="bottom", fontsize=9)
        axes.plot([places[0] + 0.05, places[-1] + 0.95], [-0.55, -0.55], color="black", linewidth=0.6, clip_on=False)
    for column, x in across.items():
        axes.text(x + 0.5, -0.08, column.name, ha="center", va="bottom", fontsize=7.5)
    axes.set(xlim=(0, right), ylim=(y, 0))
    axes.set_title(f"{stream_title(one.stream)}\n{one.crossed}", fontsize=9, pad=40)
    caption = f"{one.caption} Dash: not run. Hatched: cells failed."
    if any(cell.values and cell.interval[0] < scale.norm.vmin for cell in one.cells.values()):
        caption += " The darkest colour stands for all that lies below the bar."
    characters = int((right * CELL[0] + 1) * 17)
    axes.text(0, -0.02, textwrap.fill(caption, characters), transform=axes.transAxes, va="top", fontsize=6.5)
    axes.set_axis_off()


def _draw_cell(axes: Any, cell: Reached | None, usual: int, x: float, y: float, scale: Any) -> None:
    from matplotlib.patches import Rectangle

    centre = {"ha": "center", "va": "center"}
    if cell is None:
        axes.add_patch(Rectangle((x, y), 1, 1, facecolor="white", edgecolor="0.85", linewidth=0.5))
        axes.text(x + 0.5, y + 0.5, "–", color="0.6", **centre)
        return
    colour = scale.to_rgba(cell.interval[0]) if cell.values else (1.0, 1.0, 1.0, 1.0)
    axes.add_patch(Rectangle((x, y), 1, 1, facecolor=colour, edgecolor="white", linewidth=0.8))
    dark = sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), colour, strict=False)) < 0.46
    ink = "white" if dark else "black"
    if cell.failed:
        axes.add_patch(Rectangle((x, y), 1, 1, fill=False, hatch="////", edgecolor=ink, linewidth=0, alpha=0.35))
    lines = cell.text(usual, "\n").split("\n")
    for i, (line, place) in enumerate(zip(lines, PLACES[len(lines)], strict=True)):
        size = 8.5 if cell.values and not i else 5.8
        axes.text(x + 0.5, y + place, line, color=ink, fontsize=size, **centre)
