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
    from bench.common.csv_text import csv_text
    from bench.common.files import write_atomic
    from bench.report.columns import RESULTS

    rows = table_rows(results, standings_in(results, data, plugins), eval_split)
    if as_json:
        click.echo(json.dumps(rows, indent=1))
    elif csv_file and csv_file != "-":
        write_atomic(Path(csv_file), csv_text(rows, RESULTS))
        if not quiet:
            click.echo(f"{csv_file}: {len(rows)} cells")
    else:
        click.echo(csv_text(rows, RESULTS), nl=False)
