"""``clmerge diff``: what differs between two results folders."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from bench.commands.options import common

FOLDER = click.Path(path_type=Path)


@click.command()
@click.argument("a", type=FOLDER)
@click.argument("b", type=FOLDER)
@click.option("--json", "as_json", is_flag=True, help="Machine-readable, every cell.")
@common
def diff(quiet: bool, a: Path, b: Path, as_json: bool) -> None:
    """Compare two results folders cell by cell: exit 0 where all that both have is the same, 1 where it is not.

    \b
    clmerge diff results /mnt/other/results
    """
    from bench.report.compare.diff import compare

    found = compare(a.expanduser(), b.expanduser())
    if as_json:
        click.echo(json.dumps(found.as_json(), indent=1))
    else:
        for line in list(found.lines())[: 1 if quiet else None]:
            click.echo(line)
    sys.exit(0 if found.same else 1)
