"""The factorial rule x trainer x start, or rule x head: what does the rule do, and what all that it is shown with?

Two tables (every rule at one common start and trainer; the papers' own starts) and, for each stream, a heat map of
A_last with the 95 % t interval over repeats in every cell. A rule with options is one row for each setting of them;
an option that only follows the start (a task vector's zero, say) makes no row of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product, starmap
from typing import Any, NamedTuple

from bench.common.csv_text import csv_text
from bench.config.schema import Section
from bench.method import START, Start
from bench.report import tables
from bench.report.rows import BLOCK, SPLITS, Row, footnotes, grouped, mark, measured_rows, stream_title
from bench.report.section import Document, TableSection

NO_IMAGES, ORACLES = "No images of past tasks", "Oracles: validation images of all tasks"
SECTIONS = (NO_IMAGES, tables.KEEPS_IMAGES, ORACLES)


class Column(NamedTuple):
    """Of the heat map."""

    trainer: str
    start: str
    head: str = ""  #: "": the protocol's

    @property
    def group(self) -> str:
        """What it shares with the columns beside it."""
        return f"{self.trainer}+rule@{self.start}" if self.head else self.trainer

    @property
    def name(self) -> str:
        """What it has of its own."""
        return self.head or self.start


class FactorialConfig(Section):
    """The ``factorial`` key of a report."""

    start: Start = "merged"  #: the common one of the first table
    trainer: str = "plain"  #: and its trainer
    rules: list[str] = []  #: order of the heat map's rows; others follow, best at the common start first
    trainers: list[str] = []  #: order of its columns; others follow
    heads: list[str] = []  #: columns are these heads at the common start and trainer, in place of trainers and starts

    @property
    def common(self) -> Column:
        """The column that orders the rows."""
        return Column(self.trainer, self.start, *self.heads[:1])


@dataclass(frozen=True)
class Reached:
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
    crossed: str  #: what the columns are
    sections: dict[str, list[str]]
    cells: dict[tuple[str, Column], Reached]
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
        row
        for row in rows
        if row["start"] == config.start and (row["trainer"] or {}).get("key") == config.trainer and not row.get("head")
    ]
    papers = [row for row in rows if row["method_status"] != "variant" and "@" not in str(row["method"])]
    about = f"Every rule at start {config.start}, trainer {config.trainer}"
    return [*tables.blocks(common, order, about), *tables.blocks(papers, order, "The papers' own starts")]


def heat_maps(config: FactorialConfig, rows: Iterable[Row]) -> list[HeatMap]:
    """One a stream, of labelled rows whose backbone is trained task by task: with the head of the protocol, or with
    each of the report's at the common start and trainer.
    """
    factors = [row for row in rows if _is_factor(config, row)]
    return [_heat_map(config, stream) for stream in grouped(factors, BLOCK).values()]


def _is_factor(config: FactorialConfig, row: Row) -> bool:
    """What is outdated would make rows of options that are asked for no more; "What is incomplete" names it."""
    trainer = row["trainer"] or {}
    trained_task_by_task = trainer.get("adapt", True) and trainer.get("data") != "seen"
    if not row["rule"] or not trained_task_by_task or row["status"] == "outdated":
        return False
    if config.heads:
        return row["classifier"] in config.heads and (trainer.get("key"), row["start"]) == (
            config.trainer,
            config.start,
        )
    return not row.get("head")


def _heat_map(config: FactorialConfig, stream: list[Row]) -> HeatMap:
    names = {part: _distinguished(stream, part) for part in ("rule", "trainer")}
    rules: dict[str, list[Row]] = {}
    repeats: dict[tuple[str, Column], list[Row]] = {}
    for row in stream:
        rule, trainer = (_spelled(row[part], names[part]) for part in ("rule", "trainer"))
        column = Column(trainer, row["start"], row["classifier"] if config.heads else "")
        rules.setdefault(rule, []).append(row)
        repeats.setdefault((rule, column), []).append(row)
    cells = {place: _reached(rows) for place, rows in repeats.items()}
    labels = _labels(rules, names["rule"])
    sections: dict[str, list[str]] = {section: [] for section in SECTIONS}
    for rule in sorted(rules, key=lambda rule: _order(config, rule, cells)):
        sections[_section(rules[rule])].append(labels[rule])
    used = {column for _, column in cells}
    trainers = sorted({c.trainer for c in used}, key=lambda t: (_rank(t, config.trainers), t != config.trainer, t))
    starts = [start for start in START if any(column.start == start for column in used)]
    heads = [head for head in config.heads or [""] if any(column.head == head for column in used)]
    return HeatMap(
        stream[0],
        list(starmap(Column, product(trainers, starts, heads))),
        "training, and head" if config.heads else "trainer, and where training of a task starts",
        {section: names for section, names in sections.items() if names},
        {(labels[rule], column): cell for (rule, column), cell in cells.items()},
        footnotes(stream),
    )


def _order(config: FactorialConfig, rule: str, cells: Mapping[tuple[str, Column], Reached]) -> tuple[int, bool, float]:
    """As the report lists them, then by accuracy at the common start, then by the best anywhere."""
    common = cells.get((rule, config.common), Reached((), 0, 0))
    means = [cell.interval[0] for (name, _), cell in cells.items() if name == rule and cell.values]
    best = common.interval[0] if common.values else max(means, default=0.0)
    return _rank(rule, config.rules), not common.values, -best


def _section(rows: Sequence[Row]) -> str:
    if all(row["method_status"] == "oracle" for row in rows):
        return ORACLES
    return tables.KEEPS_IMAGES if any(row["keeps_images"] for row in rows) else NO_IMAGES


def _labels(rules: Mapping[str, Sequence[Row]], names: Mapping[str, set[str]]) -> dict[str, str]:
    """Short names of the rows: of the options that tell rows apart, those that the shortest variant spells out."""

    def spelled(row: Row) -> str:
        options = (pair.removeprefix("rule.") for pair in row["variant"].partition(":")[2].split(","))
        telling = [pair for pair in options if pair.partition("=")[0] in names[row["rule"]["key"]]]
        return ":".join([row["rule"]["key"], *filter(None, [",".join(telling)])])

    short = {rule: min(map(spelled, rows), key=len) for rule, rows in rules.items()}
    if len(set(short.values())) < len(short):
        short = {rule: rule for rule in rules}
    marks = {rule: {mark(row) for row in rows} for rule, rows in rules.items()}
    return {rule: text + (marks[rule].pop() if len(marks[rule]) == 1 else "") for rule, text in short.items()}


def _rank(name: str, order: Sequence[str]) -> int:
    """Place in a list of keys; ``key:option=value`` stands with its key."""
    names = (name, name.partition(":")[0])
    return next((i for i, key in enumerate(order) if key in names), len(order))


def _distinguished(stream: Iterable[Row], part: str) -> dict[str, set[str]]:
    """By key of the rules (trainers), the options that differ where key, the other part and the start are the same."""
    differing: dict[str, set[str]] = {}
    for group in grouped(
        ({"r": r["rule"]["key"], "t": r["trainer"]["key"], "start": r["start"], "of": r[part]} for r in stream),
        ("r", "t", "start"),
    ).values():
        options = differing.setdefault(group[0]["of"]["key"], set())
        for name in {name for row in group for name in row["of"]}:
            if len({str(row["of"].get(name)) for row in group}) > 1:
                options.add(name)
    return differing


def _spelled(part: Mapping[str, Any], names: Mapping[str, set[str]]) -> str:
    options = ",".join(f"{name}={part.get(name)}" for name in sorted(names[part["key"]]))
    return part["key"] + (f":{options}" if options else "")


def _reached(repeats: Sequence[Row]) -> Reached:
    values = tuple(row["a_last"] for row in measured_rows(repeats))
    return Reached(values, len(repeats), len(repeats) - len(values))


# ---- the same numbers in every format ----------------------------------------------------------------------------
def document(maps: Iterable[HeatMap]) -> Document:
    """A table a stream and section."""
    sections = []
    for one in maps:
        sections.append(TableSection(stream_title(one.stream), about=f"{one.caption} Empty: not run."))
        heads = [("Rule",), *((f"{column.group}, {column.name}",) for column in one.columns)]
        for section, rules in one.sections.items():
            rows = [[rule, *(_text(one, rule, column) for column in one.columns)] for rule in rules]
            sections.append(TableSection(section, heads, rows, level=3))
    return Document("Every rule crossed with what it is shown with", sections)


def _text(heat_map: HeatMap, rule: str, column: Column) -> str:
    reached = heat_map.cells.get((rule, column))
    return reached.text(heat_map.n) if reached else ""


def csv(maps: Iterable[HeatMap]) -> str:
    """One line a cell that was run, unrounded."""
    columns = ("rule", "section", "trainer", "start", "head", "n", "cells", "failed", "mean", "low", "high")
    lines = []
    for one in maps:
        for section, rules in one.sections.items():
            for rule in rules:
                for column in one.columns:
                    cell = one.cells.get((rule, column))
                    if cell is None:
                        continue
                    mean, low, high = cell.interval if cell.values else (None, None, None)
                    line = (rule, section, *column, len(cell.values), cell.cells, cell.failed, mean, low, high)
                    lines.append({name: one.stream[name] for name in BLOCK} | dict(zip(columns, line, strict=True)))
    return csv_text(lines, (*BLOCK, *columns))
