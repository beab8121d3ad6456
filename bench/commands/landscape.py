"""``clmerge landscape``: accuracy and loss on the path from the old served model to the newly trained one."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bench.commands.failures import exit_where_failed
from bench.commands.options import asked_suite, common, execution, grid
from bench.common.errors import UserError

if TYPE_CHECKING:
    from bench.execute.execute import Execution
    from bench.plan.cell import Cell
    from bench.report.figures.landscape import MergePath
    from bench.run.landscape import Step


@click.command()
@grid
@execution("local")
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("reports/out/landscape"), show_default=True,
    help="Folder to write to.",
)  # fmt: skip
@click.option("--step", type=click.FloatRange(0.001, 0.5), default=0.05, show_default=True, help="Between two alphas.")
@common
def landscape(
    results: Path, data: Path, plugins: tuple[Path, ...], quiet: bool, out: Path, step: float, executor: str,
    workers: int | None, gpus_per_run: float | None, **options: Any,
) -> None:  # fmt: skip
    """Walk from the old served model to the newly trained one after every task, and draw what happens on the way.

    Runs what has no kept weights yet. One repeat unless --seeds says otherwise.

    \b
    clmerge landscape --datasets digits --tasks 3 --methods pm
    """
    from bench.session import Session

    if not options["methods"]:
        raise UserError("--methods: name whose merges to look at; clmerge list methods has them")
    suite = asked_suite({**options, "seeds": options["seeds"] or "1"})
    names = ("use_cache", "rerun", "class_order_seed", "run_seed")
    session = Session(
        suite, results=results, data=data, plugins=plugins, executor=executor, workers=workers,
        gpus_per_run=gpus_per_run, quiet=quiet, **{name: options[name] for name in names},
    )  # fmt: skip
    cells, blocked = session.grid
    from bench.run.landscape import check_cell  # opens torch, which a mistake above must not wait for

    for cell in cells:
        check_cell(cell)
    cells = [dataclasses.replace(cell, keep_weights=True) for cell in cells]
    plan = session.of(cells, blocked).plan()
    if set(plan.stale) - {cell.id for cell in plan.to_run}:
        click.echo("note: some weights were kept by other code than today's; --rerun stale runs them again", err=True)
    outcome = session.run(plan)
    _draw([cell for cell in cells if cell.id not in outcome.failed], session.execution, out, step)
    exit_where_failed(outcome, len(cells))


def _draw(cells: list[Cell], execution: Execution, out: Path, step: float) -> None:
    """Walk, write the files of each cell, and print its table."""
    import torch

    from bench.common.cache import Store
    from bench.common.files import write_atomic
    from bench.records.record import read_record
    from bench.report.figures.drawing import paper_style, rendered
    from bench.report.figures.landscape import landscape_figure
    from bench.run.landscape import csv
    from bench.run.landscape import landscape as walk
    from bench.run.workbench import Workbench

    device = "cuda" if torch.cuda.is_available() else "cpu"
    results = execution.results
    bench = Workbench(results, execution.data, Store(results / "cache", execution.use_cache), device)
    for cell in cells:
        steps = walk(cell, read_record(results / "runs" / cell.id / "cell.json"), bench, step)
        title = f"{cell.dataset.key}, T = {cell.n_tasks}, protocol {cell.protocol.key}: {cell.method.key}"
        with paper_style():
            drawn = rendered(landscape_figure([merge_path(each) for each in steps], title))
        files: dict[str, str | bytes] = {"csv": csv(steps), **drawn}
        for kind, content in files.items():
            write_atomic(out / f"{cell.id}.{kind}", content)
        _print(cell.id, steps, execution.quiet)
        for kind in files:
            click.echo(os.path.relpath(out / f"{cell.id}.{kind}"))


def merge_path(step: Step) -> MergePath:
    """What the figure draws of a step."""
    from bench.report.figures.landscape import ALL, NEW, OLD, MergePath

    groups = {OLD: slice(0, step.t - 1), NEW: slice(step.t - 1, None), ALL: slice(None)}
    lines = {(name, given): (tasks, given) for name, tasks in groups.items() for given in (False, True)}
    return MergePath(
        step.t,
        [point.alpha for point in step.points],
        {key: [point.accuracy(*which) for point in step.points] for key, which in lines.items()},
        {key: [point.loss(*which) for point in step.points] for key, which in lines.items()},
        step.served.alpha,
        {name: step.served.accuracy(tasks) for name, tasks in groups.items()},
        {name: step.served.loss(tasks) for name, tasks in groups.items()},
        step.closed_form,
        step.off_path,
    )


def _print(cell_id: str, steps: list[Step], quiet: bool) -> None:
    from rich.console import Console

    from bench.report.section import TableSection

    heads = ["t", "1/t", "closed form", "served", "off path", *steps[0].best()]
    rows = [
        [
            str(step.t),
            f"{1 / step.t:.3f}",
            "-" if step.closed_form is None else f"{step.closed_form:.3f}",
            f"{step.served.alpha:.3f}",
            f"{step.off_path:.3f}",
            *(f"{alpha:.2f}" for alpha in step.best().values()),
        ]
        for step in steps
    ]
    # A pipe has no width: print wide rather than cut columns off.
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    console.print(TableSection(cell_id, [(head,) for head in heads], rows).terminal())
    differing = sum(step.differing for step in steps)
    if differing:
        click.echo(f"note: {differing} predictions differ from the record's: other rounding on this machine", err=True)
    if not quiet:
        click.echo("The last three columns look at the images that are drawn: they choose nothing.")
