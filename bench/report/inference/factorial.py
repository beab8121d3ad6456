"""The factorial rule x trainer x start: what does the rule do, and what the training it is shown with?

Two tables (every rule at one common start and trainer; the papers' own starts) and, for each stream, a heat map of
A_last with the 95 % t interval over repeats in every cell. A rule with options is one row for each setting of them;
an option that only follows the start (a task vector's zero, say) makes no row of its own.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.config.schema import Section
from bench.method import START, Start
from bench.report import tables
from bench.report.rows import BLOCK, MEASURED, SPLITS, Row, csv_text, footnotes, grouped, mark, stream_title

NO_IMAGES, ORACLES = "No images of past tasks", "Oracles: validation images of all tasks"
SECTIONS = (NO_IMAGES, tables.KEEPS_IMAGES, ORACLES)
CELL, GAP = (0.88, 0.4), 0.12  # inches; the gap, between trainers, in cells
PLACES = {1: (0.5,), 2: (0.36, 0.72), 3: (0.24, 0.57, 0.82)}  # of a cell's lines of text, from its top

Column = tuple[str, str]  #: trainer, start


class FactorialConfig(Section):
    """The ``factorial`` key of a report."""

    start: Start = "merged"  #: the common one of the first table
    trainer: str = "plain"  #: and its trainer
    rules: list[str] = []  #: order of the heat map's rows; others follow, best at the common start first
    trainers: list[str] = []  #: order of its columns; others follow


@dataclass(frozen=True)
class Cell:
    """A_last of one rule, trainer and start over its repeats, in percent."""

    values: tuple[float, ...]
    cells: int  #: repeats that were run
    failed: int  #: of these, failed or damaged

    @property
    def interval(self) -> tuple[float, float | None, float | None]:
        """Mean and 95 % interval; needs a value."""
        return tables.mean_interval(self.values)

    def text(self, usual: int, separator: str = " ") -> str:
        """Mean, interval, and what is not as usual: fewer repeats, failures."""
        parts = []
        if self.values:
            mean, low, high = self.interval
            parts = [f"{mean:.1f}"] + ([] if low is None else [f"[{low:.1f}, {high:.1f}]"])
        if self.failed:
            parts.append(f"failed {self.failed}/{self.cells}")
        elif len(self.values) != usual:
            parts.append(f"n = {len(self.values)}")
        return separator.join(parts)


@dataclass(frozen=True)
class HeatMap:
    """One stream's: the rows of each section and the cells that were run."""

    stream: Row  #: a row of the stream, for its coordinates
    columns: list[Column]
    sections: dict[str, list[str]]
    cells: dict[tuple[str, Column], Cell]
    marks: list[str]

    @property
    def n(self) -> int:
        """The usual number of repeats: the largest."""
        return max(len(cell.values) for cell in self.cells.values())

    @property
    def caption(self) -> str:
        """What the numbers are."""
        split = SPLITS.get(self.stream["eval_split"], "")
        return " ".join(
            text
            for text in (
                f"A_last in percent, mean and 95 % t interval over n = {self.n} repeats (fewer where a cell says so).",
                split,
                *(f"{text}." for text in self.marks),
            )
            if text
        )


def blocks(config: FactorialConfig, rows: Sequence[Row], order: Sequence[str]) -> list[tables.Block]:
    """The two tables: every rule at the common start and trainer, and named methods at their own."""
    common = [
        r
        for r in rows
        if r["start"] == config.start and (r["trainer"] or {}).get("key") == config.trainer and not r.get("head")
    ]
    own = [r for r in rows if r["method_status"] != "variant" and "@" not in str(r["method"])]
    about = f"Every rule at start {config.start}, trainer {config.trainer}"
    return [*tables.blocks(common, order, about), *tables.blocks(own, order, "The papers' own starts")]


def heat_maps(config: FactorialConfig, rows: Iterable[Row]) -> list[HeatMap]:
    """One a stream, of labelled rows whose backbone is trained task by task and that bring no head of their own."""
    factors = [
        r for r in rows if r["rule"] and (r["trainer"] or {}).get("adapt", True) and not _joint(r) and not r.get("head")
    ]
    return [_heat_map(config, stream) for stream in grouped(factors, BLOCK).values()]


def _joint(row: Row) -> bool:
    return bool((row["trainer"] or {}).get("data") == "seen")


def _heat_map(config: FactorialConfig, stream: list[Row]) -> HeatMap:
    names = {part: _distinguished(stream, part) for part in ("rule", "trainer")}
    rules: dict[str, list[Row]] = {}
    found: dict[tuple[str, Column], list[Row]] = {}
    for row in stream:
        rule, trainer = (_spelled(row[part], names[part]) for part in ("rule", "trainer"))
        rules.setdefault(rule, []).append(row)
        found.setdefault((rule, (trainer, row["start"])), []).append(row)
    cells = {place: _cell(repeats) for place, repeats in found.items()}

    def goodness(rule: str) -> tuple[int, bool, float]:
        common = cells.get((rule, (config.trainer, config.start)), Cell((), 0, 0))
        reached = [cell.interval[0] for place, cell in cells.items() if place[0] == rule and cell.values]
        return (
            _rank(rule, config.rules),
            not common.values,
            -(common.interval[0] if common.values else max(reached, default=0.0)),
        )

    labels = _labels(rules, names["rule"])
    sections: dict[str, list[str]] = {section: [] for section in SECTIONS}
    for rule in sorted(rules, key=goodness):
        mine = rules[rule]
        section = (
            ORACLES
            if all(r["method_status"] == "oracle" for r in mine)
            else tables.KEEPS_IMAGES
            if any(r["keeps_images"] for r in mine)
            else NO_IMAGES
        )
        sections[section].append(labels[rule])
    trainers = sorted({t for _, (t, _) in cells}, key=lambda t: (_rank(t, config.trainers), t != config.trainer, t))
    starts = [start for start in START if any(column[1] == start for _, column in cells)]
    return HeatMap(
        stream[0],
        [(trainer, start) for trainer in trainers for start in starts],
        {section: mine for section, mine in sections.items() if mine},
        {(labels[rule], column): cell for (rule, column), cell in cells.items()},
        footnotes(stream),
    )


def _labels(rules: Mapping[str, Sequence[Row]], names: Mapping[str, set[str]]) -> dict[str, str]:
    """Short names of the rows: of the options that tell rows apart, those that the shortest variant spells out."""

    def spelled(row: Row) -> str:
        told = (pair.removeprefix("rule.") for pair in row["variant"].partition(":")[2].split(","))
        kept = [pair for pair in told if pair.partition("=")[0] in names[row["rule"]["key"]]]
        return ":".join([row["rule"]["key"], *filter(None, [",".join(kept)])])

    short = {rule: min(map(spelled, mine), key=len) for rule, mine in rules.items()}
    if len(set(short.values())) < len(short):
        short = {rule: rule for rule in rules}
    marks = {rule: {mark(row) for row in mine} for rule, mine in rules.items()}
    return {rule: text + (marks[rule].pop() if len(marks[rule]) == 1 else "") for rule, text in short.items()}


def _rank(name: str, order: Sequence[str]) -> int:
    """Place in a list of keys; ``key:option=value`` stands with its key."""
    names = (name, name.partition(":")[0])
    return next((i for i, key in enumerate(order) if key in names), len(order))


def _distinguished(stream: Iterable[Row], part: str) -> dict[str, set[str]]:
    """By key of the rules (trainers), the options that differ where key, the other part and the start are the same."""
    told: dict[str, set[str]] = {}
    for group in grouped(
        ({"r": r["rule"]["key"], "t": r["trainer"]["key"], "start": r["start"], "of": r[part]} for r in stream),
        ("r", "t", "start"),
    ).values():
        mine = told.setdefault(group[0]["of"]["key"], set())
        for name in {name for row in group for name in row["of"]}:
            if len({str(row["of"].get(name)) for row in group}) > 1:
                mine.add(name)
    return told


def _spelled(part: Mapping[str, Any], names: Mapping[str, set[str]]) -> str:
    options = ",".join(f"{name}={part.get(name)}" for name in sorted(names[part["key"]]))
    return part["key"] + (f":{options}" if options else "")


def _cell(repeats: Sequence[Row]) -> Cell:
    values = tuple(r["a_last"] for r in repeats if r["status"] in MEASURED and r["a_last"] is not None)
    return Cell(values, len(repeats), len(repeats) - len(values))


# ---- the same numbers in every format ----------------------------------------------------------------------------
def markdown(maps: Iterable[HeatMap]) -> str:
    """GitHub Markdown, a table a stream and section."""
    import pandas as pd

    parts = ["# Rule, trainer and start"]
    for one in maps:
        parts.append(f"## {tables.escape_markdown(stream_title(one.stream))}")
        for section, rules in one.sections.items():
            frame = pd.DataFrame(
                {"Rule": rule}
                | {
                    f"{trainer}, {start}": cell.text(one.n) if (cell := one.cells.get((rule, (trainer, start)))) else ""
                    for trainer, start in one.columns
                }
                for rule in rules
            )
            parts += [f"### {section}", tables.markdown_table(frame)]
        parts.append(f"{tables.escape_markdown(one.caption)} Empty: not run.")
    return "\n\n".join(parts) + "\n"


def csv(maps: Iterable[HeatMap]) -> str:
    """One line a cell that was run, unrounded."""
    columns = ("rule", "section", "trainer", "start", "n", "cells", "failed", "mean", "low", "high")
    lines = []
    for one in maps:
        for section, rules in one.sections.items():
            for rule in rules:
                for trainer, start in one.columns:
                    cell = one.cells.get((rule, (trainer, start)))
                    if cell is None:
                        continue
                    mean, low, high = cell.interval if cell.values else (None, None, None)
                    line = (rule, section, trainer, start, len(cell.values), cell.cells, cell.failed, mean, low, high)
                    lines.append({name: one.stream[name] for name in BLOCK} | dict(zip(columns, line, strict=True)))
    return csv_text(lines, (*BLOCK, *columns))


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

    trainers = list(dict.fromkeys(trainer for trainer, _ in one.columns))
    across = {column: i + GAP * trainers.index(column[0]) for i, column in enumerate(one.columns)}
    right, y = max(across.values()) + 1, 0.0
    for section, rules in one.sections.items():
        axes.text(0, y + 0.72, section, fontsize=8, fontweight="bold", ha="left")
        y += 0.8
        for rule in rules:
            axes.text(-0.08, y + 0.5, rule, ha="right", va="center", fontsize=8)
            for column, x in across.items():
                _draw_cell(axes, one.cells.get((rule, column)), one.n, x, y, scale)
            y += 1
    for trainer in trainers:
        mine = [x for column, x in across.items() if column[0] == trainer]
        axes.text((mine[0] + mine[-1] + 1) / 2, -0.62, trainer, ha="center", va="bottom", fontsize=9)
        axes.plot([mine[0] + 0.05, mine[-1] + 0.95], [-0.55, -0.55], color="black", linewidth=0.6, clip_on=False)
    for (_, start), x in across.items():
        axes.text(x + 0.5, -0.08, start, ha="center", va="bottom", fontsize=7.5)
    axes.set(xlim=(0, right), ylim=(y, 0))
    axes.set_title(f"{stream_title(one.stream)}\ntrainer, and where training of a task starts", fontsize=9, pad=40)
    caption = f"{one.caption} Dash: not run. Hatched: cells failed."
    if any(cell.values and cell.interval[0] < scale.norm.vmin for cell in one.cells.values()):
        caption += " The darkest colour stands for all that lies below the bar."
    characters = int((right * CELL[0] + 1) * 17)
    axes.text(0, -0.02, textwrap.fill(caption, characters), transform=axes.transAxes, va="top", fontsize=6.5)
    axes.set_axis_off()


def _draw_cell(axes: Any, cell: Cell | None, usual: int, x: float, y: float, scale: Any) -> None:
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
