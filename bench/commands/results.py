"""``clmerge results``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import click

from bench.commands.options import common
from bench.commands.tables import standings_in, table_rows
from bench.config.schema import EvalSplit


@click.command()
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
    from bench.report.rows import csv_text, write_csv

    found = table_rows(results, standings_in(results, data, plugins), eval_split)
    if as_json:
        click.echo(json.dumps(found, indent=1))
    elif csv_file and csv_file != "-":
        write_csv(found, Path(csv_file))
        if not quiet:
            click.echo(f"{csv_file}: {len(found)} cells")
    else:
        click.echo(csv_text(found), nl=False)
