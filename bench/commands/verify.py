"""``clmerge verify``."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from bench.commands.options import common
from bench.commands.tables import standings_in, table_rows
from bench.common.paths import PUBLISHED_RESULTS


@click.command()
@click.option(
    "--published",
    type=click.Path(path_type=Path),
    default=PUBLISHED_RESULTS / "embedded.csv",
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
def verify(results: Path, data: Path, plugins: tuple[Path, ...], published: Path, tolerance: float) -> None:
    """Compare this machine's cells with the published ones; exit 1 where they disagree."""
    from bench.report.compare.verify import read_published
    from bench.report.compare.verify import verify as compare

    lines, ok = compare(
        table_rows(results, standings_in(results, data, plugins), "test"),
        read_published(published),
        tolerance=tolerance,
    )
    for line in lines:
        click.echo(line)
    sys.exit(0 if ok else 1)
