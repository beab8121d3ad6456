"""``clmerge import``: accuracy matrices of other harnesses into the tables, marked."""

from __future__ import annotations

from pathlib import Path

import click

from bench.commands.options import common


@click.command(name="import")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@common
def import_(results: Path, quiet: bool, files: tuple[Path, ...]) -> None:
    """Enter accuracy matrices that another harness measured (YAML FILES) into the tables, marked as imported.

    \b
    clmerge import pilot_l2p.yaml && clmerge report
    """
    from bench.records.imported import read_import, write_records

    records = [record for file in files for record in read_import(file)]  # all are checked before any is written
    write_records(records, results)
    for record in records if not quiet else []:
        click.echo(f"{record['id']}: {record['imported']['source']}")
