"""``clmerge report``."""

from __future__ import annotations

import os
from pathlib import Path

import click

from bench.commands.options import common
from bench.commands.tables import standings_in
from bench.common.paths import ROOT


@click.command()
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
    from bench.report.build import write_report

    files = write_report(
        results, out, report_yaml or ROOT / "reports" / "embedded.yaml", standings_in(results, data, plugins)
    )
    for file in files:
        click.echo(os.path.relpath(file))
