"""``clmerge tune``: the same number of trials for every method, on validation streams; the winner is a protocol."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import click

from bench.commands.failures import exit_where_failed
from bench.commands.options import common, execution, words
from bench.common.errors import UserError
from bench.config.schema import SuiteConfig, check


@click.command()
@click.option("--methods", required=True, help="Names or spellings, as of run.")
@click.option("--datasets", required=True, help="Keys or YAML files.")
@click.option("--tasks", help="Task counts; default: each dataset's first.")
@click.option("--protocol", default="embedded", show_default=True, help="What is tuned: a preset or a YAML file.")
@click.option("--trials", type=click.IntRange(1), default=8, show_default=True, help="Of each method.")
@click.option("--repeats", default="100-102", show_default=True, help="Class orders to tune on; run refuses them.")
@click.option("--space", type=click.Path(path_type=Path), help="A YAML file of what to search in place of defaults.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The protocol to write.")
@execution()
@click.option("--json", "as_json", is_flag=True, help="Print what was chosen as JSON and nothing else.")
@common
def tune(
    results: Path, data: Path, plugins: tuple[Path, ...], quiet: bool, methods: str, datasets: str, tasks: str | None,
    protocol: str, trials: int, repeats: str, space: Path | None, out: Path, as_json: bool, **how: Any,
) -> None:  # fmt: skip
    """Choose learning rates and options on validation images, with one budget for all methods.

    \b
    clmerge tune --methods "finetune ewc average@merged pm" --datasets glyphs_xor --tasks 5 --out tuned.yaml
    clmerge run  --methods "finetune ewc average@merged pm" --datasets glyphs_xor --tasks 5 --protocol tuned.yaml
    """
    from bench.config.files import read_yaml
    from bench.plan.tune import SpaceConfig, check_out, choose, plan_searches, write_protocol
    from bench.session import Session

    check_out(out, protocol)
    suite = _suite(methods, datasets, tasks, protocol, repeats)
    wanted = read_yaml(space, SpaceConfig) if space else SpaceConfig()
    # Scores of another version of the code are not comparable with those that are still to come.
    session = Session(
        suite, results=results, data=data, plugins=plugins, rerun=["stale"], quiet=quiet or as_json, **how
    )
    searches = plan_searches(suite, trials, wanted, session.registry, data, session.folders)
    cells = {cell.id: cell for search in searches for point in search.points for cell in point.cells}
    if not cells:
        raise UserError("--methods: none of these has anything to tune; name others, or give --space")
    suite = suite.model_copy(update={"tasks": sorted({cell.n_tasks for cell in cells.values()})})
    plan = session.of(cells.values()).plan()
    if not session.execution.quiet:
        click.echo(session.describe(plan))
    outcome = session.run(plan)
    choices = [choose(search, results) for search in searches]
    if all(choice.values is None for choice in choices):
        raise UserError("clmerge tune: no trial of any method finished, so nothing is written")
    write_protocol(out, suite, choices, trials)
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(choice) for choice in choices], indent=1))
    else:
        _print(choices, trials, suite)
        if not quiet:
            click.echo(f"{out}: clmerge run --protocol {out} takes it, on other repeats than {repeats}")
    unfinished = [c.name for c in choices if c.spent and c.values is None]
    more = f"; no trial of {', '.join(unfinished)} finished" if unfinished else ""
    exit_where_failed(outcome, len(cells), more)


def _suite(methods: str, datasets: str, tasks: str | None, protocol: str, repeats: str) -> SuiteConfig:
    """What is tuned on: validation streams."""
    if repeats.strip().isdigit():  # of --seeds that is a count, and hundreds of repeats where one was meant
        raise UserError(f"--repeats: {repeats} would be a count; write a span (100-102) or a list ({repeats},)")
    asked = {
        "key": "tune", "protocol": [protocol], "datasets": words(datasets, "--datasets"), "seeds": repeats,
        "tasks": words(tasks, "--tasks") if tasks else [], "methods": words(methods, "--methods"), "eval_split": "val",
    }  # fmt: skip
    return check(asked, SuiteConfig, "command line")


def _print(choices: list[Any], trials: int, suite: Any) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    streams = f"{', '.join(suite.datasets)}, T = {', '.join(map(str, suite.tasks))}"
    title = f"Mean A_last on the validation split of {streams}, repeats {suite.seeds}, protocol {suite.protocols[0]}"
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("Method", "Chosen"):
        table.add_column(column)
    for column in ("Chosen %", "Defaults %", "Trials spent"):
        table.add_column(column, justify="right")
    for c in choices:
        values = ", ".join(f"{name}={value}" for name, value in (c.values or {}).items()) or "defaults"
        if not c.spent:
            values = "nothing to tune"
        elif c.values is None:
            values = "no trial finished"
        scores = [f"{s:.1f}" if s is not None else "-" for s in (c.score, c.default)]
        table.add_row(c.name, values, *scores, f"{c.spent} of {trials}")
    Console(width=None if sys.stdout.isatty() else 160, highlight=False, markup=False).print(table)
