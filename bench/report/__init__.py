"""Reports: from records to tables, declared contrasts and figures. Nothing here is read by a run."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import field_validator

from bench.config import Section
from bench.errors import UserError, unknown
from bench.presets import read_yaml
from bench.record import read_records
from bench.report import contrasts, factorial, regret, tables
from bench.report.factorial import FactorialConfig
from bench.report.frame import Row, detailed_rows, labelled
from bench.report.regret import RegretConfig
from bench.store import write_atomic

if TYPE_CHECKING:
    from rich.console import Group


class ReportConfig(Section):
    """``reports/<name>.yaml``: what a report shows, and the contrasts declared before the runs."""

    title: str = "Results"
    caption: str = ""
    protocol: str | None = None  #: only cells under this protocol; None: all, a block each
    methods: list[str] = []  #: order of the rows; others follow, best A_last first
    columns: list[str] = list(tables.DEFAULT_COLUMNS)
    families: list[contrasts.Family] = []
    factorial: FactorialConfig | None = None  #: two tables and a heat map in place of one table
    regret: RegretConfig | None = None

    @field_validator("columns")
    @classmethod
    def _columns(cls, columns: list[str]) -> list[str]:
        for name in columns:
            if name not in tables.HEADERS:
                raise ValueError(str(unknown("column", name, tables.HEADERS)))
        if any(name.startswith("forgetting") for name in columns) and "learn_acc" not in columns:
            raise ValueError("forgetting is shown only beside learn_acc, because what learns nothing forgets least")
        return columns


@dataclass(frozen=True)
class Report:
    """One report, ready to be rendered."""

    config: ReportConfig
    rows: list[Row]  #: labelled cells
    blocks: list[tables.Block]
    contrasts: contrasts.Contrasts
    notes: list[str]  #: what is not in the tables, and why

    def markdown(self) -> str:
        """The tables as one Markdown document."""
        parts = [f"# {tables.escape_markdown(self.config.title)}", tables.escape_markdown(self.config.caption.strip())]
        parts.append(tables.markdown(self.blocks, self.config.columns))
        parts.append("\n".join(f"- {tables.escape_markdown(note)}" for note in self.notes))
        return "\n\n".join(part.strip() for part in parts if part.strip()) + "\n"

    def latex(self) -> str:
        """The tables as booktabs floats."""
        return tables.latex(self.blocks, self.config.columns, self.config.caption)

    def terminal(self) -> Group:
        """The tables for ``rich``, and the declared contrasts where there are repeats enough to test any."""
        from rich.console import Group
        from rich.text import Text

        parts = [Text(self.config.caption.strip())] if self.config.caption else []
        notes = [Text(note, style="dim") for note in self.notes]
        tested = any(result.p is not None for result in self.contrasts.results)
        declared: list[Any] = [self.contrasts.terminal()] if tested else []
        if self.contrasts.results and not tested:
            few = (
                f"Declared contrasts are tested from {contrasts.MIN_REPEATS} repeats on; `clmerge report` writes them."
            )
            declared = [Text(few, style="dim")]
        return Group(*parts, tables.terminal(self.blocks, self.config.columns), *notes, *declared)


def build_report(
    results_dir: Path,
    report_yaml: Path | None = None,
    stale: Collection[str] = frozenset(),
    only: Collection[str] | None = None,
) -> Report:
    """Read the records and summarise them.

    Args:
        results_dir: the folder that holds ``runs/``.
        report_yaml: a :class:`ReportConfig`; ``None`` shows everything with the default columns and no contrasts.
        stale: ids of cells whose code has changed since.
        only: ids of the cells to show; None: all.

    Raises:
        UserError: no records (of the report's protocol), or a mistake in the report file.
    """
    config = ReportConfig() if report_yaml is None else read_yaml(report_yaml, ReportConfig)
    records = [r for r in read_records(results_dir) if only is None or r["id"] in only]
    every = detailed_rows(records, stale)
    known = [row for row in every if row["dataset"] is not None]
    # A protocol with overrides, "embedded[train.lr=0.003]", is a block of its own in the same report.
    mine = [row for row in known if config.protocol in (None, row["protocol"].partition("[")[0])]
    if not mine:
        under = f" under protocol {config.protocol!r} ({report_yaml}: protocol)" if config.protocol else ""
        raise UserError(f"{results_dir / 'runs'}: no records{under}; run some cells first, or name another --results")
    rows = labelled(mine)
    others = len(known) - len(mine)
    notes = [f"{others} cells under other protocols are not in this report."] if others else []
    notes += [f"Damaged and not counted: {row['id']} ({row['reason']})." for row in every if row["status"] == "damaged"]
    if config.factorial:
        blocks = factorial.blocks(config.factorial, rows, config.methods)
    else:
        blocks = tables.blocks(rows, config.methods)
    return Report(config, rows, blocks, contrasts.evaluate(config.families, rows), notes)


def write_report(
    results_dir: Path, out_dir: Path, report_yaml: Path | None = None, stale: Collection[str] = frozenset()
) -> list[Path]:
    """Write ``table.{md,tex,csv}``, ``accuracy_over_tasks.{png,pdf}`` and, where declared, ``contrasts.{md,csv}``,
    ``heatmap.{md,csv,png,pdf}`` (then no accuracy over tasks: too many lines) and ``regret.{md,csv,png,pdf}``.

    Returns the files written. Raises as :func:`build_report`. There is no figure when no cell has been measured.
    """
    from bench.report.figures import accuracy_over_tasks

    report = build_report(results_dir, report_yaml, stale)
    files: dict[str, str | bytes] = {
        "table.md": report.markdown(),
        "table.tex": report.latex(),
        "table.csv": tables.table_csv(report.blocks),
    }
    if report.config.families:
        files |= {"contrasts.md": report.contrasts.markdown(), "contrasts.csv": report.contrasts.csv()}
    figures: dict[str, dict[str, bytes]] = {}
    if report.config.factorial:
        maps = factorial.heat_maps(report.config.factorial, report.rows)
        files |= {"heatmap.md": factorial.markdown(maps), "heatmap.csv": factorial.csv(maps)}
        figures["heatmap"] = factorial.figure(maps)
    else:
        labels = list(dict.fromkeys(line["label"] for block in report.blocks for line in block.lines))
        figures["accuracy_over_tasks"] = accuracy_over_tasks(report.rows, labels)
    if report.config.regret:
        lost = regret.evaluate(report.config.regret, report.rows)
        files |= {"regret.md": lost.markdown(), "regret.csv": lost.csv()}
        figures["regret"] = regret.figure(lost)
    files |= {f"{name}.{kind}": data for name, figure in figures.items() for kind, data in figure.items()}
    for name, data in files.items():
        write_atomic(out_dir / name, data)
    return [out_dir / name for name in files]
