"""Tables: per stream one row a method, mean ± sample standard deviation over the repeats.

Forgetting is never ranked or set in bold: a backbone that learns nothing forgets least. Learning accuracy and the
frozen backbone's forgetting stand beside it.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from bench.common.csv_text import csv_text
from bench.report.columns import BY_KEY, BYTES, SUMMARISED, Summary, mean_sd, shown_on
from bench.report.rows import (
    BLOCK,
    SPLITS,
    TROUBLES,
    Row,
    footnotes,
    grouped,
    matches,
    measured_rows,
    stream_title,
)
from bench.report.scenario_words import words_of
from bench.report.section import TableSection

KEEPS_IMAGES = "Keeps images of past tasks"
DEFAULT_COLUMNS = tuple(column.key for column in shown_on("table"))
TROUBLE = "Cells"  #: the heading over what is not simply done
FIRST = ("n", TROUBLE, *(column.heading for column in shown_on("terminal")))
IDENTITY = (*BLOCK, "label", "method", "variant", "start", "title", "method_status")
COUNTED = ("n", "cells", *TROUBLES, "keeps_images")


@dataclass(frozen=True)
class Block:
    """One stream's table: ``lines`` hold a method's identity, ``n``, status counts and (mean, sd) under each metric.

    ``notes`` are on this stream alone; :func:`legend` is what every table needs. Methods that keep images of past tasks
    have a block of their own, whose table shows the bytes of them.
    """

    title: str
    lines: list[dict[str, Any]]
    notes: list[str]
    keeps_images: bool = False

    def all_notes(self) -> list[str]:
        """The notes, the legend and each label's full variant: a printed table must stand alone."""
        spelled = "; ".join(f"{line['label']} = {line['variant']}" for line in self.lines)
        return [*self.notes, *legend(self.lines), f"Spelled out: {spelled}."]


def blocks(rows: Iterable[Row], order: Sequence[str] = (), about: str = "") -> list[Block]:
    """Summaries of :func:`labelled` rows, one a (dataset, T, protocol, split), and one more where methods keep images
    of past tasks; no row is hidden.

    Args:
        rows: cells whose coordinates are known.
        order: selectors (see :func:`matches`) in the order of the table. What none of them means follows, best A_last
            first.
        about: which methods these are, for the titles.
    """
    return [block for group in grouped(rows, BLOCK).values() for block in _blocks(group, order, about)]


def _blocks(rows: list[Row], order: Sequence[str], about: str) -> list[Block]:
    def place(line: dict[str, Any]) -> tuple[int, float]:
        rank = next((i for i, selector in enumerate(order) if matches(selector, line)), len(order))
        mean = line["a_last"][0]
        return rank, float("inf") if mean is None else -mean

    lines = sorted((_line(group) for group in grouped(rows, ("method", "variant")).values()), key=place)
    notes = [SPLITS[rows[0]["eval_split"]]] if rows[0]["eval_split"] in SPLITS else []
    words = words_of(rows[0]["scenario"])
    notes += [words.note] if words.note else []
    notes += _budget(rows)
    frozen = [line for line in lines if line["frozen"] and line["forgetting"][0] is not None]
    for line in frozen:
        notes.append(
            f"Frozen backbone ({line['label']}): forgetting {number(line['forgetting'])} at learning accuracy "
            f"{number(line['learn_acc'])}. Its weights never change: {words.frozen}."
        )
    if not frozen:
        notes.append("No frozen backbone was run here, so forgetting has nothing to be read against.")
    title = ". ".join(text for text in (stream_title(rows[0]), about) if text)
    parts = {keeps: [line for line in lines if line["keeps_images"] == keeps] for keeps in (False, True)}
    titles = {False: title, True: f"{title}. {KEEPS_IMAGES}"}
    return [Block(titles[keeps], part, notes, keeps) for keeps, part in parts.items() if part]


def _budget(rows: list[Row]) -> list[str]:
    """What tuning was spent on each method, where the protocol was tuned."""
    spent = {row["label"]: row["tuning"] for row in rows if row["tuning"] and row["status"] != "outdated"}
    tuned = next((tuning for tuning in spent.values() if tuning["trials"]), None)
    if tuned is None:
        return []
    streams = f"{', '.join(tuned['datasets'])}, T = {', '.join(map(str, tuned['tasks']))}"
    none = [label for label, tuning in spent.items() if not tuning["trials"]]
    return [
        f"{tuned['trials']} tuning trials a method on the validation split of {streams}, repeats {tuned['repeats']}"
        + (f"; none for {', '.join(none)}." if none else ".")
    ]


def legend(lines: Iterable[dict[str, Any]]) -> list[str]:
    """How to read any of the tables, and what the marks in these lines mean."""
    return [
        "Mean ± sample standard deviation over n repeats; accuracies in percent, differences in points. Time: "
        "training alone plus merging. Carried: what crosses a task boundary beyond pretrained and served weights and "
        "heads.",
        *footnotes(lines),
    ]


def _line(rows: list[Row]) -> dict[str, Any]:
    measured = measured_rows(rows)
    line = {name: rows[0][name] for name in (*IDENTITY, "frozen")}
    line |= {"n": len(measured), "cells": len(rows)}
    line |= {status: sum(row["status"] == status for row in rows) for status in TROUBLES}
    line["keeps_images"] = any(row["keeps_images"] for row in measured or rows)
    return line | {column.key: mean_sd([row.get(column.key) for row in measured]) for column in SUMMARISED}


def mean_interval(values: Sequence[float]) -> tuple[float, float | None, float | None]:
    """Mean and its 95 % t interval over independent repeats (at least one); no interval of a single repeat."""
    from scipy.stats import t

    mean, n = statistics.fmean(values), len(values)
    if n == 1:
        return mean, None, None
    half = float(t.ppf(0.975, n - 1)) * statistics.stdev(values) / n**0.5
    return mean, mean - half, mean + half


def number(summary: Summary) -> str:
    """An accuracy or a difference of accuracies, mean ± sd."""
    return BY_KEY["a_last"].text(summary)


def section(block: Block, columns: Sequence[str], notes: Sequence[str]) -> TableSection:
    """A block as every format prints it, over these notes."""
    keys = dict.fromkeys([*columns, *(BYTES if block.keeps_images else ())])
    chosen = [BY_KEY[key] for key in keys]
    heads = ["Method", "Start", "n", *(column.heading for column in chosen)]
    rows = [
        [line["label"], line["start"], str(line["n"]), *(column.text(line[column.key]) for column in chosen)]
        for line in block.lines
    ]
    troubles = [_troubles(line) for line in block.lines]
    if any(troubles):
        heads.append(TROUBLE)
        rows = [[*row, trouble] for row, trouble in zip(rows, troubles, strict=True)]
    return TableSection(block.title, [(head,) for head in heads], rows, notes, labels=2, first=FIRST)


def _troubles(line: dict[str, Any]) -> str:
    return ", ".join(f"{status} {line[status]}/{line['cells']}" for status in TROUBLES if line[status])


def table_csv(blocks: Sequence[Block]) -> str:
    """All metrics of all streams, unrounded: ``<metric>_mean`` and ``<metric>_sd``; ``footnote`` explains the mark."""
    values = [f"{column.key}_{part}" for column in SUMMARISED for part in ("mean", "sd")]
    rows = []
    for line in (line for block in blocks for line in block.lines):
        row = {name: line[name] for name in (*IDENTITY, *COUNTED)} | {"footnote": " ".join(footnotes([line]))}
        for column in SUMMARISED:
            row[f"{column.key}_mean"], row[f"{column.key}_sd"] = line[column.key]
        rows.append(row)
    return csv_text(rows, (*IDENTITY, *COUNTED, *values, "footnote"))
