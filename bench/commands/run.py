"""``clmerge run`` and ``clmerge plan``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bench.commands.failures import exit_where_failed
from bench.commands.options import asked_suite, common, execution, grid
from bench.commands.tables import print_table
from bench.config.files import read_yaml, yaml_files
from bench.config.schema import SuiteConfig

if TYPE_CHECKING:
    from bench.session import Session


def _session(options: dict[str, Any], **more: Any) -> Session:
    """The session of the grid that is asked for."""
    from bench.session import Session

    names = ("results", "data", "plugins", "use_cache", "rerun", "class_order_seed", "run_seed")
    return Session(asked_suite(options), **{name: options[name] for name in names}, **more)


@click.command()
@grid
@execution()
@click.option("--shard", metavar="K/N", help="Only the K-th of N parts of the trials (job arrays).")
@click.option("--keep-weights", is_flag=True, help="Write every task's weights beside the record (clmerge replay).")
@click.option("--json", "as_json", is_flag=True, help="Print the cells' rows as JSON and nothing else.")
@common
def run(
    results: Path, data: Path, plugins: tuple[Path, ...], quiet: bool, executor: str, workers: int | None,
    gpus_per_run: float | None, shard: str | None, keep_weights: bool, as_json: bool, **options: Any,
) -> None:  # fmt: skip
    """Run what of the grid has no record yet, then print the table.

    \b
    clmerge run --datasets glyphs_xor --tasks 5,10 --methods "pm average@merged" --seeds 5
    clmerge run --suite smoke --executor local
    """
    quiet = quiet or as_json
    session = _session(
        options | {"results": results, "data": data, "plugins": plugins}, executor=executor, workers=workers,
        gpus_per_run=gpus_per_run, keep_weights=keep_weights, quiet=quiet,
    )  # fmt: skip
    plan = session.plan(prepare=True)
    trials = session.trials(plan, shard)  # a shard that cannot be is told before anything is printed
    if not quiet:
        click.echo(session.describe(plan))
    outcome = session.run(plan, shard)
    if as_json:
        click.echo(json.dumps(session.results(plan), indent=1))
    elif shard:
        count = sum(len(trial) for trial in trials)
        ran = f"{count} cell{'s' * (count > 1)} run" if count else "nothing to run"
        click.echo(f"shard {shard}: {ran}")
    else:
        from bench.session import standings_after

        print_table(results, session.ids, standings_after(plan), _report_yaml(session.suite, plan.cells))
    if not quiet:
        click.echo(f"records: {results / 'runs'}\nreport:  clmerge report writes Markdown, LaTeX, CSV and figures")
    exit_where_failed(outcome, len(plan.cells))


def _report_yaml(suite: SuiteConfig, cells: list[Any]) -> Path | None:
    """The suite's own report, else its protocol's, where there is one about the protocol that was run."""
    from bench.report.build import ReportConfig

    ran = {cell.protocol.variant_of or cell.protocol.key for cell in cells}
    files = [file for name in (suite.key, *ran) for file in yaml_files("reports") if file.stem == name]
    return next((file for file in files if ran <= {read_yaml(file, ReportConfig).protocol}), None)


@click.command()
@grid
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
@common
def plan(results: Path, data: Path, plugins: tuple[Path, ...], quiet: bool, as_json: bool, **options: Any) -> None:
    """Say what a run would do, without doing it."""
    from bench.plan.forecast import describe

    session = _session(options | {"results": results, "data": data, "plugins": plugins})
    planned = session.plan()
    if as_json:
        click.echo(json.dumps(planned.as_json(), indent=1))
    else:
        click.echo(describe(planned, session.suite, results, None))
        for cell in planned.to_run if not quiet else []:
            click.echo(f"  {cell.id}")
