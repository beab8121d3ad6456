"""The command line. It checks everything first, prints what it will do, and imports torch and Ray only to do it."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any, get_args

import click

from bench import __version__
from bench.code import ROOT
from bench.commands.cache import cache
from bench.commands.check import check
from bench.commands.data import data as data_commands
from bench.commands.diff import diff
from bench.commands.import_ import import_
from bench.commands.landscape import landscape
from bench.commands.merge import merge
from bench.commands.paper import paper
from bench.commands.replay import replay
from bench.commands.table import print_table, standings_in, table_rows
from bench.commands.text import text
from bench.commands.tune import tune
from bench.config import EvalSplit, SuiteConfig
from bench.errors import UserError
from bench.options import asked_suite, common, grid
from bench.presets import read_yaml
from bench.record import Standing
from bench.registry import Registry, plugin_places


class _Group(click.Group):
    """Commands in the order in which a person meets them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In order of definition."""
        return list(self.commands)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="clmerge")
def cli() -> None:
    """Compare continual-learning-by-merging methods on one grid, under one protocol.

    \b
    Examples:
      clmerge run                                           the embedded default grid
      clmerge plan --datasets glyphs_xor --methods "pm average@merged" --seeds 5
      clmerge run  --datasets glyphs --tasks 5,10 --methods "pm pm:eps=0.3 perturb+average@previous"
      clmerge list methods
      clmerge results --csv results.csv
      clmerge report
    """


def _planned(
    results: Path,
    data: Path,
    plugins: tuple[Path, ...],
    options: dict[str, Any],
    keep_weights: bool = False,
    prepare: bool = False,
) -> tuple[Any, SuiteConfig]:
    """The plan of the grid that is asked for, and the suite."""
    from bench.grid import expand
    from bench.plan import make_plan, with_data_as_it_is
    from bench.store import Store

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
        cell.request["keep_weights"] = True
    store = Store(results / "cache", options["use_cache"])
    return make_plan(cells, blocked, results, data, store, options["rerun"]), suite


def _shard(text: str, trials: list[Any]) -> list[Any]:
    """The K-th of N parts of the trials."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise UserError(f"--shard: {text!r} is not K/N with 1 <= K <= N, for example 2/8")
    return trials[int(match[1]) - 1 :: int(match[2])]


@cli.command()
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
    from bench.plan import describe, pack, preflight
    from bench.schedule import Execution, execute, slots

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
    from bench.report import ReportConfig

    ran = {cell.protocol.variant_of or cell.protocol.key for cell in cells}
    files = [ROOT / "reports" / f"{name}.yaml" for name in (suite.key, *ran)]
    return next((f for f in files if f.is_file() and ran <= {read_yaml(f, ReportConfig).protocol}), None)


@cli.command()
@grid
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
@common
def plan(results: Path, data: Path, plugins: tuple[Path, ...], quiet: bool, as_json: bool, **options: Any) -> None:
    """Say what a run would do, without doing it."""
    from bench.plan import describe

    planned, suite = _planned(results, data, plugins, options)
    if as_json:
        click.echo(json.dumps(planned.as_json(), indent=1))
    else:
        click.echo(describe(planned, suite, results, None))
        for cell in planned.to_run if not quiet else []:
            click.echo(f"  {cell.id}")


@cli.command(name="list")
@click.argument("what", type=click.Choice(["methods", "trainers", "rules", "datasets", "protocols", "suites"]))
@click.option("--protocol", default="embedded", show_default=True, help="Whose tuned values methods are shown with.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
@common
def list_(
    results: Path, data: Path, plugins: tuple[Path, ...], quiet: bool, what: str, protocol: str, as_json: bool
) -> None:
    """List methods, trainers, rules, datasets, protocols or suites."""
    from bench.listing import listing

    rows = listing(what, protocol, data, plugins)
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    hidden = (
        ("parameters", "trainer", "rule", "title", "start", "state", "data") if what == "methods" else ("parameters",)
    )
    columns = {c: None for row in rows for c in row if c not in hidden}
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(_cell(row.get(column)) for column in columns))
    Console(width=None if sys.stdout.isatty() else 160, highlight=False).print(table)


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value))
    if isinstance(value, dict):
        return ", ".join(f"{k}: {v}" for k, v in value.items())
    return "" if value is None else str(value)


@cli.command()
@click.option("--csv", "csv_file", metavar="FILE", help="Write one row a cell; - for standard output.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
@click.option("--eval-split", type=click.Choice(get_args(EvalSplit)), default="test", show_default=True)
@common
def results(
    results: Path,
    data: Path,
    plugins: tuple[Path, ...],
    quiet: bool,
    csv_file: str | None,
    as_json: bool,
    eval_split: str,
) -> None:
    """Print one row a cell: coordinates, metrics (percent, unrounded), costs."""
    from bench.report.frame import csv_text, write_csv

    found = table_rows(results, standings_in(results, data, plugins), eval_split)
    if as_json:
        click.echo(json.dumps(found, indent=1))
    elif csv_file and csv_file != "-":
        write_csv(found, Path(csv_file))
        if not quiet:
            click.echo(f"{csv_file}: {len(found)} cells")
    else:
        click.echo(csv_text(found), nl=False)


@cli.command()
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("reports/out"), show_default=True, help="Folder to write to."
)
@click.option(
    "--report", "report_yaml", type=click.Path(path_type=Path), help="A reports/*.yaml; default: the embedded one."
)
@common
def report(
    results: Path, data: Path, plugins: tuple[Path, ...], quiet: bool, out: Path, report_yaml: Path | None
) -> None:
    """Write index.html, the tables (Markdown, LaTeX, CSV), the declared contrasts and the figures."""
    from bench.report import write_report

    files = write_report(
        results, out, report_yaml or ROOT / "reports" / "embedded.yaml", standings_in(results, data, plugins)
    )
    for file in files:
        click.echo(os.path.relpath(file))


@cli.command()
@click.option(
    "--published",
    type=click.Path(path_type=Path),
    default=ROOT / "results" / "published" / "embedded.csv",
    help="The published CSV. Default: the embedded one.",
)
@click.option(
    "--tolerance",
    type=click.FloatRange(0),
    default=3.0,
    show_default=True,
    help="Points of A_last that one cell may differ.",
)
@common
def verify(
    results: Path, data: Path, plugins: tuple[Path, ...], quiet: bool, published: Path, tolerance: float
) -> None:
    """Compare this machine's cells with the published ones; exit 1 where they disagree."""
    from bench.report.verify import read_published
    from bench.report.verify import verify as compare

    lines, ok = compare(
        table_rows(results, standings_in(results, data, plugins), "test"),
        read_published(published),
        tolerance=tolerance,
    )
    for line in lines:
        click.echo(line)
    sys.exit(0 if ok else 1)


@cli.command()
@click.option("--protocol", default="embedded_pretrain", show_default=True)
@click.option("--dataset", default="glyphs_base", show_default=True)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The safetensors file to write.")
@common
def pretrain(
    results: Path, data: Path, plugins: tuple[Path, ...], quiet: bool, protocol: str, dataset: str, seed: int, out: Path
) -> None:
    """Pre-train a small backbone: the recipe behind the committed weights.

    \b
    clmerge pretrain --out my_vit.safetensors
    """
    from bench.data.dataset import availability
    from bench.presets import load_dataset_config, load_protocol

    recipe, config = load_protocol(protocol), load_dataset_config(dataset, [])
    why_not = availability(config, data)
    if why_not:
        raise UserError(f"dataset {dataset!r} is not on this machine: {why_not}")
    from bench.pretrain import pretrain as run_pretraining

    told = run_pretraining(recipe, config, data, seed, out)
    measured = f"{told['accuracy']:.1f} % on the test part of {dataset}, {told['seconds']:.0f} s"
    click.echo(f"{out}: {told['parameters']:,} parameters, {measured}\nsha256 {told['sha256']}")


for command in (cache, data_commands, text, replay, import_, check, merge, tune, paper, landscape, diff):
    cli.add_command(command)


def main() -> None:
    """The console command."""
    cli()
