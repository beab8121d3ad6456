"""``clmerge run`` and ``clmerge plan``."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from pathlib import Path
from typing import Any

import click

from bench.commands.options import asked_suite, common, grid
from bench.commands.tables import print_table, table_rows
from bench.common.errors import UserError
from bench.config.files import read_yaml, yaml_files
from bench.config.schema import SuiteConfig
from bench.records.record import Standing
from bench.registry import Registry, plugin_places


def _planned(
    results: Path,
    data: Path,
    plugins: tuple[Path, ...],
    options: dict[str, Any],
    keep_weights: bool = False,
    prepare: bool = False,
) -> tuple[Any, SuiteConfig]:
    """The plan of the grid that is asked for, and the suite."""
    from bench.common.cache import Store
    from bench.plan.grid import expand
    from bench.plan.todo import make_plan, with_data_as_it_is

    suite = asked_suite(options)
    registry = Registry.load(plugins)
    folders = [p for p in plugin_places(plugins)[1:] if p.is_dir()]
    pinned = {name: options[name] for name in ("class_order_seed", "run_seed")}
    cells, blocked = expand(suite, registry, data, folders, **pinned)
    if prepare:
        cells = with_data_as_it_is(cells, data)
    for cell in cells if keep_weights else []:
        if cell.method.trainer.data == "seen":
            raise UserError(f"--keep-weights: {cell.method.key!r} has no task models to keep; leave it out")
    cells = [dataclasses.replace(cell, keep_weights=keep_weights) for cell in cells]
    store = Store(results / "cache", options["use_cache"])
    return make_plan(cells, blocked, results, data, store, options["rerun"]), suite


def _shard(text: str, trials: list[Any]) -> list[Any]:
    """The K-th of N parts of the trials."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise UserError(f"--shard: {text!r} is not K/N with 1 <= K <= N, for example 2/8")
    return trials[int(match[1]) - 1 :: int(match[2])]


@click.command()
@grid
@click.option(
    "--executor",
    type=click.Choice(["ray", "local"]),
    default="ray",
    show_default=True,
    help="Ray Tune, or in this process.",
)
@click.option("--workers", type=click.IntRange(1), help="Processes at once; default: what fits the machine.")
@click.option(
    "--gpus-per-run",
    type=click.FloatRange(0, 1),
    help="Share of a GPU for one process, 0 for none; default 1 where there are GPUs.",
)
@click.option("--keep-weights", is_flag=True, help="Write every task's weights beside the record (clmerge replay).")
@click.option("--json", "as_json", is_flag=True, help="Print the cells' rows as JSON and nothing else.")
@common
def run(
    results: Path, data: Path, plugins: tuple[Path, ...], quiet: bool, executor: Any, workers: int | None,
    gpus_per_run: float | None, keep_weights: bool, as_json: bool, **options: Any,
) -> None:  # fmt: skip
    """Run what of the grid has no record yet, then print the table.

    \b
    clmerge run --datasets glyphs_xor --tasks 5,10 --methods "pm average@merged" --seeds 5
    clmerge run --suite smoke --executor local
    """
    from bench.execute.execute import Execution, execute
    from bench.execute.resources import slots
    from bench.plan.forecast import describe, preflight
    from bench.plan.trials import pack

    plan, suite = _planned(results, data, plugins, options, keep_weights, prepare=True)
    quiet, places = quiet or as_json, tuple(plugin_places(plugins)[1:])
    execution = Execution(results, data, places, executor, options["use_cache"], gpus_per_run, workers, quiet)
    threads = max(cell.protocol.threads for cell in plan.cells)
    processes = slots(execution, threads)
    trials = pack(plan.to_run, processes)
    if options["shard"]:  # cut the whole grid, which is the same for every job of an array, not what is left of it
        left = {cell.id for cell in plan.to_run}
        mine = _shard(options["shard"], pack(plan.cells, processes))
        trials = [todo for trial in mine if (todo := [cell for cell in trial if cell.id in left])]
    if not quiet:
        click.echo(describe(plan, suite, results, processes))
    failed: dict[str, str] = {}
    if trials:
        preflight(plan, results, data)
        failed = execute(trials, execution, threads).failed
    ids = {cell.id for cell in plan.cells}
    standings = dict.fromkeys(set(plan.stale) - {cell.id for cell in plan.to_run}, Standing("stale"))
    if as_json:
        click.echo(json.dumps(table_rows(results, standings, suite.eval_split, ids), indent=1))
    else:
        print_table(results, ids, standings, _report_yaml(suite, plan.cells))
    if not quiet:
        click.echo(f"records: {results / 'runs'}\nreport:  clmerge report writes Markdown, LaTeX, CSV and figures")
    if failed:
        click.echo(f"{len(failed)} of {len(plan.cells)} cells failed; the same command tries them again", err=True)
        sys.exit(1)


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

    planned, suite = _planned(results, data, plugins, options)
    if as_json:
        click.echo(json.dumps(planned.as_json(), indent=1))
    else:
        click.echo(describe(planned, suite, results, None))
        for cell in planned.to_run if not quiet else []:
            click.echo(f"  {cell.id}")
