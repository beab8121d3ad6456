"""The ladder: from the frozen backbone over learners to training on all data at once, a dot a method."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from bench.report.figures.drawing import SPREAD, Look, caption, looks, measured, sheet, short_title, write_caption
from bench.report.rows import BLOCK, Row, grouped

FROZEN, FITTED = "Frozen backbone, trained heads", "Frozen backbone, fitted heads"
LEARNERS, IMAGES = "Learners", "Learners that keep images"
ORACLES, ALL_DATA = "Oracles", "All data at once"
RUNGS = (FROZEN, FITTED, LEARNERS, IMAGES, ORACLES, ALL_DATA)  # from the bottom
LINE = 0.17  # inches of height of a method or a rung's name


def ladder(rows: Sequence[Row], labels: Sequence[str]) -> Any:
    """A_last by rung, best at the top; above, the share of the way from the frozen backbone to joint training.

    The way is from the frozen backbone with trained heads to the best of what is trained on all data at once, and is
    not shown where either was not run.
    """
    shown = measured(rows, "a_last")
    streams = list(grouped(shown, BLOCK).values())
    heights = [LINE * len(_lines(stream)) + 1.25 for stream in streams]
    figure, panels = sheet(5.6, sum(heights) + 0.4, len(streams), 1, gridspec_kw={"height_ratios": heights})
    style = looks(labels)
    for axes, stream in zip(panels, streams, strict=True):
        _draw(axes, stream, style)
    text = (
        f"{SPREAD} {{n}}. Dashed: the frozen backbone and the best of all data at once; between them the share of the "
        "way, 0 to 100 %. What serves all data at once is a ceiling only for its own heads."
    )
    write_caption(figure, caption(text, shown))
    return figure


def rung(row: Row) -> str:
    """Where a method stands, by what it may see and change."""
    trainer = row["trainer"] or {}
    if trainer.get("data") == "seen":
        return ALL_DATA
    if row["method_status"] == "oracle":
        return ORACLES
    if trainer.get("adapt") is False:
        return FITTED if row["head"] else FROZEN
    return IMAGES if row["keeps_images"] else LEARNERS


def _lines(stream: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """From the bottom: the methods of each rung with their repeats, worst first, then the rung's name with none."""
    lines: list[tuple[str, list[Row]]] = []
    for name in RUNGS:
        methods = grouped((row for row in stream if rung(row) == name), ("label",))
        order = sorted(methods, key=lambda key: _mean(methods[key]))
        lines += [(label, methods[(label,)]) for (label,) in order] + ([(name, [])] if methods else [])
    return lines


def _mean(repeats: Sequence[Row]) -> float:
    return statistics.fmean(row["a_last"] for row in repeats)


def _draw(axes: Any, stream: Sequence[Row], style: Mapping[str, Look]) -> None:
    lines = _lines(stream)
    ticks = []
    for y, (label, repeats) in enumerate(lines):
        if not repeats:
            ticks.append(label)
            axes.axhline(y, color="0.85", linewidth=0.7)
            continue
        values = [row["a_last"] for row in repeats]
        ticks.append(f"{label}  {_mean(repeats):.1f}")
        look = style[label]
        axes.errorbar(
            _mean(repeats),
            y,
            xerr=statistics.stdev(values) if len(values) > 1 else None,
            color=look.colour,
            elinewidth=0.9,
            capsize=2,
            marker=look.marker,
            markersize=5.5,
            markeredgecolor="black",
            markeredgewidth=0.4,
        )
    axes.set_yticks(range(len(lines)), ticks, fontsize=7.5)
    for tick, (_, repeats) in zip(axes.get_yticklabels(), lines, strict=True):
        tick.set_fontweight("normal" if repeats else "bold")
    axes.set_ylim(-0.7, len(lines) - 0.3)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("$A_{last}$ (%)")
    axes.set_title(short_title(stream[0]), fontsize=8.5, loc="left")
    best = {name: max((_mean(repeats) for _, repeats in lines if repeats and rung(repeats[0]) == name), default=None)
            for name in (FROZEN, ALL_DATA)}  # fmt: skip
    low, high = best[FROZEN], best[ALL_DATA]
    if low is None or high is None or high <= low:
        return
    for value in (low, high):
        axes.axvline(value, color="black", linewidth=0.7, linestyle=(0, (4, 2)), zorder=0)
    way = axes.secondary_xaxis(
        "top", functions=(lambda x: 100 * (x - low) / (high - low), lambda s: low + s * (high - low) / 100)
    )
    way.set_xlabel("share of the way (%)", fontsize=7.5)
    way.tick_params(labelsize=7.5)
