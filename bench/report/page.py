"""``index.html``: a report as one page that opens from disk. Styles, script, figures and records are inside the file.

Records are stored once as JSON, with what many share (protocol, machine, method) stored once for all of them, and a
cell's is shown when somebody opens it: ten thousand cells stay usable.
"""

from __future__ import annotations

import base64
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from bench.records.record import Record
from bench.report.columns import Column, shown_on
from bench.report.rows import BLOCK, MEASURED, Row, grouped, stream_title
from bench.report.section import rendered

if TYPE_CHECKING:
    from bench.report.build import Report

#: of a record: what the row says already, and the logs that make most of it
NOT_SHOWN = {"id", "format", "status", "coordinates", "resolved", "tasks", "counts_taskaware", "before_merge_taskaware"}
SHARED = ("method", "protocol", "code", "environment", "dataset")  #: stored once, cells point to them
STATUSES = ("done", "stale", "outdated", "failed", "damaged")
COLUMNS = shown_on("page")


class Provenance(NamedTuple):
    """Where a record comes from, in words; empty where it does not say."""

    machine: str
    software: str
    commit: str
    day: str


@dataclass(frozen=True)
class PageRecords:
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
            f"[{_json([_shown(row, column) for column in COLUMNS])},{_json(row['id'])},{self.records[row['id']]}]"
            for row in rows
        )
        heads, parts = _json([column.heading for column in COLUMNS]), _json(SHARED)
        text = f'{{"heads":{heads},"parts":{parts},"shared":[{",".join(self.shared)}],"cells":[{",".join(cells)}]}}'
        return text.replace("<", "\\u003c")  # else a title could end the script element


def html(report: Report, records: PageRecords, figures: Mapping[str, bytes]) -> str:
    """The page as text.

    Args:
        report: what is shown; the record of every row must have been given to ``records``.
        records: what the page shows of them.
        figures: PNG by caption.
    """
    from markupsafe import Markup

    contrasts = report.contrasts.document()
    return rendered(
        "report.html",
        title=report.config.title,
        caption=report.config.caption.strip(),
        summary=summary(report.rows, records.provenance),
        gaps=report.gaps,
        notes=report.notes,
        tables=report.sections(),
        contrasts=contrasts.sections,
        contrast_notes=contrasts.notes,
        figures={caption: _address(png) for caption, png in figures.items()},
        cells=len(report.rows),
        statuses=[name for name in STATUSES if any(row["status"] == name for row in report.rows)],
        data=Markup(records.json(report.rows)),
    )


def gathered(title: str, caption: str, fragments: Mapping[str, str]) -> str:
    """Fragments of HTML, escaped by who made them, as one page in the same dress; links to them by title."""
    from markupsafe import Markup

    safe = {name: Markup(fragment) for name, fragment in fragments.items()}
    return rendered("paper.html", title=title, caption=caption, fragments=safe)


def summary(rows: Sequence[Row], provenance: Mapping[str, Provenance]) -> dict[str, list[str]]:
    """What was run, in plain words: term to lines.

    Args:
        rows: labelled cells.
        provenance: of each of them, by id.
    """
    statuses = Counter(row["status"] for row in rows)
    origins = [provenance[row["id"]] for row in rows]
    days = sorted({origin.day for origin in origins} - {""})
    terms = {
        "Cells": [
            f"{len(rows):,}: " + ", ".join(f"{statuses[name]:,} {name}" for name in STATUSES if name in statuses)
        ],
        "Streams": [_stream(stream) for stream in grouped(rows, BLOCK).values()],
        "Methods": [", ".join(dict.fromkeys(row["label"] for row in rows))],
        "Machines": _counted(origin.machine for origin in origins),
        "Software": _counted(origin.software for origin in origins),
        "Commits": _counted(origin.commit or "not recorded" for origin in origins),
        "Time": [_hours(sum(row["seconds"] or 0 for row in rows if row["status"] in MEASURED))],
        "Written": [" to ".join(dict.fromkeys((days[0], days[-1])))] if days else [],
    }
    return {term: lines for term, lines in terms.items() if lines}


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
    environment = record.get("environment") or {}
    machine = [str(environment[name]) for name in ("gpu", "cpu", "system") if environment.get(name)]
    cores = [_count(environment["cores"], "core")] if environment.get("cores") else []
    software = [
        f"{name} {environment[name]}"
        for name in ("clmerge", "torch", "timm", "peft", "numpy", "python")
        if environment.get(name)
    ]
    written, commit = str(record.get("written") or "")[:10], str(environment.get("commit") or "")
    return Provenance(", ".join(machine[:1] + cores + machine[1:]), ", ".join(software), commit, written)


def _shown(row: Row, column: Column) -> Any:
    """The value in the list of cells; a method stands there under the name that the tables give it."""
    value = row["label" if column.key == "method" else column.key]
    return round(value, 4) if isinstance(value, float) else value


def _json(value: Any) -> str:
    try:
        return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    except ValueError:  # a browser reads no NaN and no Infinity, and one of them would take the whole list away
        return _json(_spelled_out(value))


def _spelled_out(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _spelled_out(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_spelled_out(part) for part in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _address(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
