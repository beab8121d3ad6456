"""Reports: from records to tables, declared contrasts and figures. Nothing here is read by a run."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import field_validator

from bench.common.errors import UserError
from bench.common.files import write_atomic
from bench.config.files import read_yaml
from bench.config.schema import Section
from bench.records.record import Record, Standing, iter_records
from bench.report import gaps, page, tables
from bench.report.columns import check_columns
from bench.report.figures import KINDS, FigureConfig, draw
from bench.report.inference import contrasts, factorial, heat_map, regret
from bench.report.inference.factorial import FactorialConfig
from bench.report.inference.regret import RegretConfig
from bench.report.rows import NO_STANDINGS, Row, detailed_rows, grouped, labelled
from bench.report.section import Document, TableSection

if TYPE_CHECKING:
    from rich.console import Group

MORE_FIGURES = {
    "heatmap": "Heat map of the factorial",
    "regret": "How much is left to gain",
}


class ReportConfig(Section):
    """``reports/<name>.yaml``: what a report shows, and the contrasts declared before the runs."""

    title: str = "Results"
    caption: str = ""
    protocol: str | None = None  #: only cells under this protocol; None: all, a block each
    methods: list[str] = []  #: order of the rows; others follow, best A_last first
    columns: list[str] = list(tables.DEFAULT_COLUMNS)
    families: list[contrasts.ContrastFamily] = []
    factorial: FactorialConfig | None = None  #: two tables and a heat map in place of one table
    regret: RegretConfig | None = None
    figures: list[FigureConfig] | None = None  #: None: accuracy over tasks, where there is no heat map instead

    @field_validator("figures")
    @classmethod
    def _figures(cls, figures: list[FigureConfig] | None) -> list[FigureConfig] | None:
        names = [figure.name for figure in figures or ()]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice:
            raise ValueError(f"{twice} is listed twice; list it once, with all of its methods")
        return figures

    @property
    def shown_figures(self) -> list[FigureConfig]:
        """The figures to draw."""
        if self.figures is not None:
            return self.figures
        return [] if self.factorial else [FigureConfig(name="accuracy_over_tasks")]

    @field_validator("columns")
    @classmethod
    def _columns(cls, columns: list[str]) -> list[str]:
        check_columns(columns)
        return columns


@dataclass(frozen=True)
class Report:
    """One report, ready to be rendered."""

    config: ReportConfig
    rows: list[Row]  #: labelled cells
    blocks: list[tables.Block]
    contrasts: contrasts.Contrasts
    notes: list[str]  #: what is not in the tables, and why
    gaps: dict[str, list[str]]  #: what is incomplete: kind, and a line a stream

    def sections(self) -> list[TableSection]:
        """A table a block; each can be printed alone."""
        return [tables.section(block, self.config.columns, block.all_notes()) for block in self.blocks]

    def document(self) -> Document:
        """The tables, and what is not in them."""
        return Document(self.config.title, self.sections(), self.notes, self.config.caption)

    def markdown(self) -> str:
        """The tables and what is incomplete as one Markdown document."""
        missing = [TableSection(kind, notes=lines, level=3) for kind, lines in self.gaps.items()]
        head = [TableSection("What is incomplete")] if missing else []
        parts = [self.document().markdown(), *(section.markdown() + "\n" for section in [*head, *missing])]
        return "\n".join(parts)

    def latex(self) -> str:
        """The tables as booktabs floats."""
        return replace(self.document(), notes=()).latex()

    def terminal(self) -> Group:
        """The tables for ``rich``, and the declared contrasts where there are repeats enough to test any."""
        from rich.console import Group
        from rich.text import Text

        small: list[Any] = [Text(self.config.caption.strip())] if self.config.caption else []
        sections = [tables.section(block, self.config.columns, block.notes) for block in self.blocks]
        outdated = [f"Outdated and not counted: {line}" for line in self.gaps.get(gaps.OUTDATED, ())]
        legend = tables.legend(line for block in self.blocks for line in block.lines)
        parts = [*small, Document("", sections, [*legend, *self.notes, *outdated]).terminal()]
        if any(result.p is not None for result in self.contrasts.results):
            parts.append(self.contrasts.document().terminal())
        elif self.contrasts.results:
            few = f"Declared contrasts are tested from {contrasts.MIN_REPEATS} repeats on; "
            parts.append(Text(few + "`clmerge report` writes them.", style="dim"))
        return Group(*parts)


def build_report(
    results_dir: Path,
    report_yaml: Path | None = None,
    standings: Mapping[str, Standing] = NO_STANDINGS,
    only: Collection[str] | None = None,
    seen: Callable[[Record], object] | None = None,
) -> Report:
    """Read the records and summarise them.

    Args:
        results_dir: the folder that holds ``runs/``.
        report_yaml: a :class:`ReportConfig`; ``None`` shows everything with the default columns and no contrasts.
        standings: of finished cells that are not simply done, by id (see :func:`bench.plan.standing.standings`).
        only: ids of the cells to show; None: all.
        seen: called with every record of them; records are not kept, because thousands would fill the memory.

    Raises:
        UserError: no records (of the report's protocol), or a mistake in the report file.
    """
    config = ReportConfig() if report_yaml is None else read_yaml(report_yaml, ReportConfig)
    every = detailed_rows(_asked(results_dir, only, seen), standings)
    known = [row for row in every if row["dataset"] is not None]
    # A protocol with overrides, "embedded[train.lr=0.003]", is a block of its own in the same report.
    shown = [row for row in known if config.protocol in (None, row["protocol"].partition("[")[0])]
    if not shown:
        under = f" under protocol {config.protocol!r} ({report_yaml}: protocol)" if config.protocol else ""
        raise UserError(f"{results_dir / 'runs'}: no records{under}; run some cells first, or name another --results")
    rows = labelled(shown)
    for row in rows:
        row["predictions"] = results_dir / "runs" / row["id"] / "pred.npz"
    others = len(known) - len(shown)
    notes = [f"{others} cells under other protocols are not in this report."] if others else []
    damaged = grouped((row for row in every if row["status"] == "damaged"), ("reason",))
    for (reason,), group in damaged.items():
        notes.append(f"Damaged and not counted: {gaps.some(row['id'] for row in group)} ({reason}).")
    if config.factorial:
        blocks = factorial.blocks(config.factorial, rows, config.methods)
    else:
        blocks = tables.blocks(rows, config.methods)
    tested = contrasts.evaluate(config.families, rows)
    return Report(config, rows, blocks, tested, notes, gaps.incomplete(rows, [] if only else _begun(results_dir)))


def _asked(
    results_dir: Path, only: Collection[str] | None, seen: Callable[[Record], object] | None
) -> Iterator[Record]:
    for record in iter_records(results_dir):
        if only is None or record["id"] in only:
            if seen:
                seen(record)
            yield record


def _begun(results_dir: Path) -> list[str]:
    folders = (folder for folder in (results_dir / "runs").iterdir() if folder.is_dir())
    return sorted(folder.name for folder in folders if not (folder / "cell.json").exists())


def write_report(
    results_dir: Path, out_dir: Path, report_yaml: Path | None = None, standings: Mapping[str, Standing] = NO_STANDINGS
) -> list[Path]:
    """Write ``index.html``, ``table.{md,tex,csv}``, the report's figures (``<name>.{png,pdf}``) and, where declared,
    ``contrasts.{md,csv}``, ``heatmap.{md,csv,png,pdf}`` and ``regret.{md,csv,png,pdf}``.

    Returns the files written. Raises as :func:`build_report`. A figure whose data is not there is left out, and a note
    in ``table.md`` says why.
    """
    records = page.PageRecords()
    report = build_report(results_dir, report_yaml, standings, seen=records.add)
    labels = list(dict.fromkeys(line["label"] for block in report.blocks for line in block.lines))
    chosen = draw(report.config.shown_figures, report.rows, labels)
    report = replace(report, notes=[*report.notes, *chosen.notes])
    files: dict[str, str | bytes] = {
        "table.md": report.markdown(),
        "table.tex": report.latex(),
        "table.csv": tables.table_csv(report.blocks),
    }
    if report.config.families:
        files |= {"contrasts.md": report.contrasts.document().markdown(), "contrasts.csv": report.contrasts.csv()}
    figures = chosen.drawn
    if report.config.factorial:
        maps = factorial.heat_maps(report.config.factorial, report.rows)
        files |= {"heatmap.md": factorial.document(maps).markdown(), "heatmap.csv": factorial.csv(maps)}
        figures["heatmap"] = heat_map.figure(maps)
    if report.config.regret:
        lost = regret.evaluate(report.config.regret, report.rows)
        files |= {"regret.md": lost.document().markdown(), "regret.csv": lost.csv()}
        figures["regret"] = regret.figure(lost)
    titles = {name: kind.title for name, kind in KINDS.items()} | MORE_FIGURES
    pictures = {titles[name]: figure["png"] for name, figure in figures.items() if figure}
    files["index.html"] = page.html(report, records, pictures)
    files |= {f"{name}.{kind}": data for name, figure in figures.items() for kind, data in figure.items()}
    for name, data in files.items():
        write_atomic(out_dir / name, data)
    return [out_dir / name for name in files]
