"""``clmerge list``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from bench.commands.options import common


@click.command(name="list")
@click.argument(
    "what", type=click.Choice(["methods", "trainers", "rules", "datasets", "protocols", "suites", "columns"])
)
@click.option("--protocol", default="embedded", show_default=True, help="Whose tuned values methods are shown with.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
@common
def list_(data: Path, plugins: tuple[Path, ...], what: str, protocol: str, as_json: bool) -> None:
    """List methods, trainers, rules, datasets, protocols, suites, or the columns of tables."""
    from bench.commands.listing import listing

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
    if all(row["source"] == "clmerge" for row in rows):
        hidden = (*hidden, "source")
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
