"""``index.html``: a report as one page that opens from disk. Styles, script, figures and records are inside the file.

Records are stored once as JSON, with what many share (protocol, machine, method) stored once for all of them, and a
cell's is shown when somebody opens it: ten thousand cells stay usable.
"""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bench.records.record import Record
from bench.report import tables
from bench.report.rows import BLOCK, MEASURED, Row, grouped, stream_title

if TYPE_CHECKING:
    import pandas as pd

    from bench.report.build import Report

TEMPLATES = Path(__file__).parent / "templates"
#: of a record: what the row says already, and the logs that make most of it
NOT_SHOWN = {"id", "format", "status", "coordinates", "tasks", "counts_taskaware", "before_merge_taskaware"}
SHARED = ("method", "protocol", "code", "environment", "dataset")  #: stored once, cells point to them
STATUSES = ("done", "stale", "outdated", "failed", "damaged")
COLUMNS = {
    "dataset": "Dataset",
    "n_tasks": "T",
    "protocol": "Protocol",
    "eval_split": "Split",
    "label": "Method",
    "class_order_seed": "Order",
    "run_seed": "Run",
    "status": "Status",
    "a_last": "A_last",
    "learn_acc": "Learning accuracy",
    "seconds": "Time (s)",
}


class Provenance(NamedTuple):
    """Where a record comes from, in words; empty where it does not say."""

    machine: str
    software: str
    commit: str
    day: str


@dataclass(frozen=True)
class Cells:
    """The records behind a page, in short; :meth:`add` is called with each as it is read."""

    shared: dict[str, int] = field(default_factory=dict)  #: JSON text to its place in the page's list
    records: dict[str, str] = field(default_factory=dict)  #: id to JSON; of :data:`SHARED` it holds the places
    provenance: dict[str, Provenance] = field(default_factory=dict)  #: by id

    def add(self, record: Record) -> None:
        """Keep what the page shows of a record."""
        short = {name: value for name, value in record.items() if name not in NOT_SHOWN and value not in (None, {})}
        for name in SHARED:
            if name in short:
                short[name] = self.shared.setdefault(_json(short[name]), len(self.shared))
        self.records[record["id"]] = _json(short)
        self.provenance[record["id"]] = _provenance(record)

    def json(self, rows: Sequence[Row]) -> str:
        """The page's data: heads, shared parts, and of every row its columns, id and record. Safe inside HTML."""
        cells = (
            f"[{_json([_rounded(row.get(name)) for name in COLUMNS])},{_json(row['id'])},{self.records[row['id']]}]"
            for row in rows
        )
        heads, parts = _json(list(COLUMNS.values())), _json(SHARED)
        text = f'{{"heads":{heads},"parts":{parts},"shared":[{",".join(self.shared)}],"cells":[{",".join(cells)}]}}'
        return text.replace("<", "\\u003c")  # else a title could end the script element


class Table(NamedTuple):
    """A frame of strings under a heading, with the lines that belong under it."""

    title: str
    frame: pd.DataFrame
    notes: list[str]


def html(report: Report, cells: Cells, figures: Mapping[str, bytes]) -> str:
    """The page as text.

    Args:
        report: what is shown; every cell of its rows must have been given to ``cells``.
        cells: the records.
        figures: PNG by caption.
    """
    from markupsafe import Markup

    shown = [
        Table(block.title, tables.printed(block, report.config.columns), block.all_notes()) for block in report.blocks
    ]
    declared = [Table(title, frame, []) for title, frame in report.contrasts.tables().items()]
    return rendered(
        "report.html",
        title=report.config.title,
        caption=report.config.caption.strip(),
        summary=summary(report.rows, cells.provenance),
        gaps=report.gaps,
        notes=report.notes,
        tables=shown,
        contrasts=declared,
        contrast_notes=[*report.contrasts.notes, *report.contrasts.marks] if declared else [],
        figures={caption: _address(png) for caption, png in figures.items()},
        cells=len(report.rows),
        data=Markup(cells.json(report.rows)),
    )


def gathered(title: str, caption: str, fragments: Mapping[str, str]) -> str:
    """Fragments of HTML, escaped by who made them, as one page in the same dress; links to them by title."""
    from markupsafe import Markup

    safe = {name: Markup(fragment) for name, fragment in fragments.items()}
    return rendered("paper.html", title=title, caption=caption, fragments=safe)


def rendered(template: str, **values: Any) -> str:
    """One of this package's templates with everything escaped that is put into it."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(TEMPLATES)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(template).render(**values)


def summary(rows: Sequence[Row], provenance: Mapping[str, Provenance]) -> dict[str, list[str]]:
    """What was run, in plain words: term to lines.

    Args:
        rows: labelled cells.
        provenance: of each of them, by id.
    """
    statuses = Counter(row["status"] for row in rows)
    told = [provenance[row["id"]] for row in rows]
    days = sorted({one.day for one in told} - {""})
    found = {
        "Cells": [
            f"{len(rows):,}: " + ", ".join(f"{statuses[name]:,} {name}" for name in STATUSES if name in statuses)
        ],
        "Streams": [_stream(stream) for stream in grouped(rows, BLOCK).values()],
        "Methods": [", ".join(dict.fromkeys(row["label"] for row in rows))],
        "Machines": _counted(one.machine for one in told),
        "Software": _counted(one.software for one in told),
        "Commits": _counted(one.commit or "not recorded" for one in told),
        "Time": [_hours(sum(row["seconds"] or 0 for row in rows if row["status"] in MEASURED))],
        "Written": [" to ".join(dict.fromkeys((days[0], days[-1])))] if days else [],
    }
    return {term: lines for term, lines in found.items() if lines}


def _stream(rows: Sequence[Row]) -> str:
    methods = len({row["label"] for row in rows})
    repeats = len({(row["class_order_seed"], row["run_seed"]) for row in rows})
    return f"{stream_title(rows[0])}: {_count(methods, 'method')}, {_count(repeats, 'repeat')}"


def _hours(seconds: float) -> str:
    spent = f"{seconds / 3600:,.1f} h" if seconds > 5400 else f"{seconds:,.0f} s"
    return f"{spent} of training and merging, every cell taken alone"


def _counted(texts: Iterable[str]) -> list[str]:
    return [f"{text} ({_count(n, 'cell')})" for text, n in Counter(texts).most_common() if text]


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'s' * (n != 1)}"


def _provenance(record: Record) -> Provenance:
    told = record.get("environment") or {}
    machine = [str(told[name]) for name in ("gpu", "cpu", "system") if told.get(name)]
    cores = [_count(told["cores"], "core")] if told.get("cores") else []
    software = [
        f"{name} {told[name]}" for name in ("clmerge", "torch", "timm", "peft", "numpy", "python") if told.get(name)
    ]
    written, commit = str(record.get("written") or "")[:10], str(told.get("commit") or "")
    return Provenance(", ".join(machine[:1] + cores + machine[1:]), ", ".join(software), commit, written)


def _rounded(value: Any) -> Any:
    return round(value, 4) if isinstance(value, float) else value


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def _address(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
