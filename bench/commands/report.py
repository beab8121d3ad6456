"""``clmerge report``."""

from __future__ import annotations

import os
from pathlib import Path

import click

from bench.commands.options import common
from bench.commands.tables import standings_in
from bench.config.files import named_file, yaml_files


@click.command()
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("reports/out"), show_default=True, help="Folder to write to."
)
@click.option(
    "--report", "report_name", default="embedded", show_default=True, help="A report of reports/, or a YAML file."
)
@common
def report(results: Path, data: Path, plugins: tuple[Path, ...], quiet: bool, out: Path, report_name: str) -> None:
    """Write index.html, the tables (Markdown, LaTeX, CSV), the declared contrasts and the figures."""
    from bench.report.build import write_report

    report_yaml = named_file(report_name, yaml_files("reports"), "report", "--report")
    files = write_report(results, out, report_yaml, standings_in(results, data, plugins))
    for file in files if not quiet else ():
        click.echo(os.path.relpath(file))
