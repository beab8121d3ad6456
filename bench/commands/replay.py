"""``clmerge replay``: class-incremental counts of any rules on task models that were trained elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from bench.commands.failures import exit_where_failed
from bench.commands.options import common, execution, words
from bench.commands.tables import print_table
from bench.common.errors import UserError


@click.command()
@click.argument("folders", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--methods", required=True, help='Rules or named methods, e.g. "average ties:density=0.1 pm".')
@click.option("--rerun", type=click.Choice(["stale", "done"]), multiple=True, help="Run these again.")
@click.option("--json", "as_json", is_flag=True, help="Print the cells' rows as JSON and nothing else.")
@execution("local")
@common
def replay(
    results: Path, data: Path, plugins: tuple[Path, ...], quiet: bool, folders: tuple[Path, ...], methods: str,
    rerun: tuple[str, ...], as_json: bool, **how: Any,
) -> None:  # fmt: skip
    """Merge the task models of FOLDERS (theta_0, theta*_1..T, heads) by any rules, evaluate, and print the table.

    \b
    clmerge run --datasets digits --methods average --seeds 1 --keep-weights
    clmerge replay results/runs/digits-*/weights --methods "average task_arithmetic:lam=0.5"
    """
    from bench.data.dataset import availability
    from bench.plan.replayed import Folder, replay_cell
    from bench.run.task_models import check_folder
    from bench.session import Session, standings_after

    session = Session(results=results, data=data, plugins=plugins, rerun=rerun, quiet=quiet or as_json, **how)
    cells = []
    for folder in folders:
        source = Folder.read(folder.expanduser().resolve())
        for spelling in words(methods, "--methods"):
            cell = replay_cell(source.request(spelling), session.registry, session.folders, data)
            why_not = availability(cell.dataset, data)
            if why_not is not None:
                raise UserError(f"dataset {cell.dataset.key!r} is not on this machine: {why_not}")
            cells.append(cell)
        check_folder(cells[-1])
    plan = session.of(cells).plan()
    outcome = session.run(plan)
    if as_json:
        click.echo(json.dumps(session.results(plan), indent=1))
    else:
        print_table(results, session.ids, standings_after(plan))
        for source_line in dict.fromkeys(f"{c.protocol.key}: {c.protocol.title}" for c in plan.cells):
            click.echo(source_line)
    exit_where_failed(outcome, len(plan.cells))
