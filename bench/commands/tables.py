"""What several commands print: rows and tables of cells that have records. Torch-free until a table is asked for."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.records.record import Standing
from bench.registry import Registry, dataset_folders


def table_rows(
    results: Path, standings: Mapping[str, Standing], eval_split: str, only: set[str] | None = None
) -> list[dict[str, Any]]:
    """One row a cell, with the columns of ``clmerge results``."""
    from bench.records.record import read_records
    from bench.report.rows import rows

    return rows([r for r in read_records(results) if only is None or r["id"] in only], standings, eval_split)


def print_table(
    results: Path, ids: set[str], standings: Mapping[str, Standing], report_yaml: Path | None = None
) -> None:
    """The tables of these cells on the terminal."""
    from rich.console import Console

    from bench.report.build import build_report

    report = build_report(results, report_yaml, standings, only=ids)
    # A pipe has no width: print wide rather than cut columns off.
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    console.print(report.terminal())


def standings_in(results: Path, data: Path, plugins: tuple[Path, ...]) -> dict[str, Standing]:
    """How the finished records of a folder stand, where they are not simply done (see :mod:`bench.plan.standing`)."""
    from bench.plan.standing import standings
    from bench.records.record import iter_records

    folders = dataset_folders(plugins)
    return standings(iter_records(results), Registry.load(plugins), folders, data)
