"""``clmerge paper``: tables of papers from the records at hand, beside what was published; missing cells on request."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bench.commands.failures import exit_where_failed
from bench.commands.options import common, execution, words
from bench.common.errors import UserError

if TYPE_CHECKING:
    from bench.execute.execute import Outcome
    from bench.plan.cell import Cell
    from bench.report.papers.cells import MeasuredTable
    from bench.report.papers.verdicts import Verdicts
    from bench.session import Session


@click.command()
@click.option("--tables", help="Names in reports/paper, or YAML files; default: all of them.")
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("reports/out/paper"), show_default=True,
    help="Folder to write to.",
)  # fmt: skip
@click.option("--run", "run_missing", is_flag=True, help="Run the missing and failed cells of these tables first.")
@execution()
@common
def paper(
    results: Path, data: Path, plugins: tuple[Path, ...], quiet: bool, tables: str | None, out: Path, run_missing: bool,
    **how: Any,
) -> None:  # fmt: skip
    """Write the tables of papers (Markdown, LaTeX, CSV, HTML), and a verdict on every published number.

    \b
    clmerge paper                                    what is there of each table
    clmerge paper --tables "embedded factorial" --run
    """
    from bench.config.files import named_file
    from bench.report.papers.cells import measure
    from bench.report.papers.layout import PAPER_TABLES, load_table
    from bench.report.papers.published import load_families
    from bench.report.papers.verdicts import judge
    from bench.session import Session

    names = words(tables, "--tables") if tables else [path.stem for path in sorted(PAPER_TABLES.glob("*.yaml"))]
    paths = dict.fromkeys(named_file(name, PAPER_TABLES.glob("*.yaml"), "table", "--tables") for name in names)
    wanted, families = [load_table(path) for path in paths], load_families()
    session = Session(results=results, data=data, plugins=plugins, quiet=quiet, **how)
    registry = session.registry

    def found() -> tuple[list[MeasuredTable], Verdicts]:
        rows = _rows(results, data, plugins)
        return (
            [measure(table, registry, session.folders, rows, families) for table in wanted],
            judge(families.values(), list(rows.values()), registry),
        )

    measured, verdicts = found()
    outcome = None
    if run_missing:
        outcome = _run(measured, session)
        measured, verdicts = found()
    files = _write(measured, verdicts, out)
    if not quiet:
        _print(measured, data)
        counts = ", ".join(f"{count} {judgement}" for judgement, count in verdicts.counts().items())
        click.echo(f"published numbers: {counts}\n{os.path.relpath(out)}: {files} files")
    if outcome is not None:
        exit_where_failed(outcome)


def _write(measured: list[MeasuredTable], verdicts: Verdicts, out: Path) -> int:
    """Returns how many files were written."""
    from bench.common.files import write_atomic
    from bench.report.page import gathered
    from bench.report.papers.formats import document, write

    files = [file for table in measured for file in write(table, out)]
    about = "Measured and published numbers never share a column; a cell without a run says so."
    index = gathered(
        "Tables of papers", about, {each.table.title: document(each).html(each.table.key) for each in measured}
    )
    texts = {
        "verdicts.md": verdicts.document().markdown(),
        "verdicts.csv": verdicts.csv(),
        "index.html": index,
    }
    for name, text in texts.items():
        write_atomic(out / name, text)
    return len(files) + len(texts)


def _rows(results: Path, data: Path, plugins: tuple[Path, ...]) -> dict[str, Any]:
    from bench.commands.tables import standings_in
    from bench.records.record import iter_records
    from bench.report.rows import detailed_rows

    return {row["id"]: row for row in detailed_rows(iter_records(results), standings_in(results, data, plugins))}


def _run(measured: list[MeasuredTable], session: Session) -> Outcome:
    """Run what is missing or failed and can be run here."""
    from bench.execute.execute import Outcome
    from bench.plan.forecast import describe
    from bench.plan.grid import expand

    asked: dict[str, Cell] = {}
    blocked: dict[str, str] = {}
    for each in measured:
        for suite in each.table.suites():
            try:
                order = each.table.class_order_seed
                cells, _ = expand(
                    suite, session.registry, session.execution.data, session.folders, class_order_seed=order
                )
                asked |= {cell.id: cell for cell in cells}
            except UserError as error:
                blocked[" ".join([f"{each.table.key},", *suite.datasets, *suite.protocols])] = str(error)
    for where, why in blocked.items():
        click.echo(f"cannot run here: {where}: {why}")
    if not asked:
        return Outcome()
    plan = session.of(asked.values()).plan()
    if not session.execution.quiet:
        click.echo(describe(plan, suite, session.execution.results, session.processes))
    return session.run(plan)


def _print(measured: list[MeasuredTable], data: Path) -> None:
    """What is there of each table, and which data is not on this machine."""
    from rich.console import Console
    from rich.table import Table

    from bench.data.dataset import availability
    from bench.report.papers.cells import STATES

    shown = Table(box=None, padding=(0, 2, 0, 0))
    shown.add_column("table")
    for column in ("cells", *STATES):
        shown.add_column(column, justify="right")
    shown.add_column("data not on this machine")
    reasons: dict[str, str] = {}
    for each in measured:
        states, datasets = each.states, {place.dataset.key: place.dataset for place in each.places}
        blocked = {key: why for key, config in datasets.items() if (why := availability(config, data))}
        reasons |= blocked
        counts = [str(states[state] or "") for state in STATES]
        shown.add_row(each.table.key, str(len(each.cells)), *counts, " ".join(blocked))
    Console(width=None if sys.stdout.isatty() else 160, highlight=False, markup=False).print(shown)
    for key, why in reasons.items():
        click.echo(f"not on this machine: {key}: {why}")
