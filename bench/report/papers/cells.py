"""Tables of papers: which cells a table needs, what of them is there, and the numbers that stand in it.

A table is a grid with a layout: its rows are methods, its columns streams (and, for a factorial, trainers and starts).
Its cells are those that ``clmerge run`` would make of the same grid, so a table knows what is missing, stale or failed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from bench.common.errors import UserError, unknown
from bench.config.files import for_dataset, load_dataset_config, load_protocol
from bench.config.schema import DatasetConfig, ProtocolConfig
from bench.method import Start
from bench.plan.cell import Cell
from bench.plan.grid import Setting, anywhere, cell_at, parse_seeds
from bench.plan.method_protocol import MethodProtocol, for_method
from bench.registry import Registry
from bench.registry.resolved import Method
from bench.report.columns import BY_KEY, Summary, mean_sd
from bench.report.papers.layout import PaperTable, StreamColumns, TableRow
from bench.report.papers.published import PublishedFamily, PublishedNumber
from bench.report.rows import MARKS, Row, mark, measured_rows

STATES = ("done", "stale", "outdated", "failed", "damaged", "missing")


@dataclass(frozen=True)
class TablePlace:
    """A measured column without its metric."""

    setting: Setting
    title: str
    n_tasks: int
    trainer: str | None
    start: Start | None

    @property
    def dataset(self) -> DatasetConfig:
        """What is learnt."""
        return self.setting.dataset

    @property
    def protocol(self) -> ProtocolConfig:
        """With the dataset's overrides."""
        return self.setting.protocol


@dataclass(frozen=True)
class RowAtPlace:
    """One row of a table at one place: its cells, and their rows where they have records."""

    line: TableRow
    place: TablePlace
    method: Method
    cells: list[Cell]
    rows: Mapping[str, Row]  #: of those that have records, by cell id

    @property
    def states(self) -> Counter[str]:
        """How many cells are in each of :data:`STATES`."""
        return Counter(self.rows[c.id]["status"] if c.id in self.rows else "missing" for c in self.cells)

    @property
    def measured(self) -> list[Row]:
        """Rows with numbers."""
        return measured_rows(self.rows[c.id] for c in self.cells if c.id in self.rows)

    def mean_sd(self, metric: str) -> Summary:
        """Mean and sample sd over the repeats; None where undefined."""
        return mean_sd([row[metric] for row in self.measured])

    def text(self, metric: str, with_states: bool) -> str:
        """What the table prints: mean ± sd, and where it is asked for what is not as wanted."""
        states, measured = self.states, bool(self.measured)
        if not measured and states["missing"] == len(self.cells):
            return "not run"
        parts = [BY_KEY[metric].text(self.mean_sd(metric))] if measured else []
        if with_states or not measured:
            notable = {state: states[state] for state in STATES[1:-1] if states[state]}
            total = len(self.cells)
            parts += [state if n == total else f"{state} {n}/{total}" for state, n in notable.items()]
            parts += [f"(n = {len(self.measured)})"] if 0 < len(self.measured) < total else []
        return " ".join(parts)


@dataclass(frozen=True)
class MeasuredTable:
    """A table with what is there of it."""

    table: PaperTable
    places: list[TablePlace]
    entries: list[list[RowAtPlace]]  #: rows x places
    families: dict[str, PublishedFamily]  #: beside and below

    @property
    def cells(self) -> dict[str, Cell]:
        """All cells by id, each once."""
        return {cell.id: cell for row in self.entries for entry in row for cell in entry.cells}

    @property
    def recorded(self) -> dict[str, Row]:
        """The rows of those that have records, by id."""
        return {cell_id: row for line in self.entries for entry in line for cell_id, row in entry.rows.items()}

    @property
    def rows(self) -> list[Row]:
        """The rows whose coordinates are known."""
        return [row for row in self.recorded.values() if row["dataset"] is not None]

    @property
    def states(self) -> Counter[str]:
        """How many of the distinct cells are in each of :data:`STATES`."""
        recorded = self.recorded
        return Counter(recorded[id_]["status"] if id_ in recorded else "missing" for id_ in self.cells)

    @property
    def varies(self) -> bool:
        """Whether columns differ in trainer or start, so that a row is no method by itself."""
        return any(place.trainer or place.start for place in self.places)

    def label(self, i: int) -> str:
        """The i-th row's, with the mark of a reconstruction or an oracle."""
        entry = self.entries[i][0]
        title = entry.line.title or (entry.line.method if self.varies else entry.method.title)
        statuses = [e.method.status for e in self.entries[i]]
        status = next((s for s in statuses if s in MARKS), statuses[0])
        return title + mark({"method_status": status})

    def published(self, family: PublishedFamily, entry: RowAtPlace, metric: str) -> PublishedNumber | None:
        """The family's number for this row, stream and metric."""
        for number in self.on_streams(family, metric, [entry.place]):
            match = family.match_method(number)
            same = match.ours in (entry.method.key, entry.method.variant) and not match.why_not
            if number.name in entry.line.published or (same and not entry.line.published):
                return number
        return None

    def on_streams(
        self, family: PublishedFamily, metric: str, places: list[TablePlace], stated: bool = True
    ) -> list[PublishedNumber]:
        """The family's numbers on these streams; not ``stated``: those on the datasets that state no task count."""
        streams = {(place.dataset.key, place.n_tasks if stated else None) for place in places}
        return [
            number
            for number in family.references
            if number.use
            and (family.match_dataset(number.dataset).ours, number.n_tasks) in streams
            and metric in (number.metric, family.match_metric(number.metric).ours)
        ]


def measure(
    table: PaperTable,
    registry: Registry,
    folders: list[Path],
    rows: Mapping[str, Row],
    families: Mapping[str, PublishedFamily],
) -> MeasuredTable:
    """The table's cells and what is there of them.

    Args:
        table: see there.
        registry: resolves the methods.
        folders: of plugins, which may bring datasets.
        rows: by id, as :func:`bench.report.rows.detailed_rows` gives them.
        families: published numbers by key.

    Raises:
        UserError: an unknown dataset, protocol, method or family, or a method that keeps images of past tasks.
    """
    where = f"table {table.key}"
    for key in (*table.beside, *table.below):
        if key not in families:
            raise unknown("published family", key, families, where)
    places = [place for columns in table.columns for place in _places(table, columns, folders)]
    repeats = [
        (repeat if table.class_order_seed is None else table.class_order_seed, repeat)
        for repeat in parse_seeds(table.repeats)
    ]
    resolved: dict[tuple[str, ...], MethodProtocol] = {}
    entries: list[list[RowAtPlace]] = []
    for line in table.lines:
        entries.append([])
        for place in places:
            key_of = (line.method, place.dataset.key, place.protocol.key, place.trainer or "", place.start or "")
            if key_of not in resolved:  # task counts and repeats share it
                resolved[key_of] = for_method(registry, place.protocol, {}, line.method, place.start, place.trainer)
                _refuse_images(resolved[key_of].method, line, where)
            asked = resolved[key_of]
            cells = [cell_at(place.setting, asked, place.n_tasks, order, run) for order, run in repeats]
            recorded = {cell.id: rows[cell.id] for cell in cells if cell.id in rows}
            entries[-1].append(RowAtPlace(line, place, asked.method, cells, recorded))
    measured = MeasuredTable(table, places, entries, {key: families[key] for key in (*table.beside, *table.below)})
    labels = [measured.label(i) for i in range(len(entries))]
    for i, label in enumerate(labels):
        if label in labels[:i]:
            raise UserError(f"{where}: methods: two rows are called {label!r}; give one of them a title")
    return measured


def _refuse_images(method: Method, line: TableRow, where: str) -> None:
    if any(spec.metadata["images"] for spec in method.rule.states().values()):
        raise UserError(
            f"{where}: methods: {line.method!r} keeps images of past tasks, and such methods stand in "
            "tables of their own, with the bytes of them (clmerge report); leave it out"
        )


def _places(table: PaperTable, columns: StreamColumns, folders: list[Path]) -> list[TablePlace]:
    dataset = load_dataset_config(columns.dataset, folders)
    preset = columns.protocol or table.protocol or dataset.protocol
    protocol = for_dataset(load_protocol(preset), dataset.key)
    setting = Setting(dataset, anywhere(columns.dataset), protocol, anywhere(preset), {})
    for n_tasks in columns.tasks:
        if not 1 <= n_tasks <= dataset.classes:
            raise UserError(
                f"table {table.key}: columns: {n_tasks} tasks do not fit the {dataset.classes} classes of "
                f"{dataset.key}; use 1 to {dataset.classes}"
            )
    trainers: list[str | None] = [*columns.trainers] or [None]
    starts: list[Start | None] = [*columns.starts] or [None]
    return [
        TablePlace(setting, columns.title or dataset.title, n_tasks, trainer, start)
        for n_tasks, trainer, start in product(columns.tasks, trainers, starts)
    ]
