"""What several commands print: rows and tables of cells that have records. Torch-free until a table is asked for."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from bench.errors import UserError
from bench.registry import Registry, plugin_places

OF_REPEATS = ("n_tasks", "class_order_seed", "run_seed", "eval_split")  #: of a request: what changes no code


def table_rows(results: Path, stale: set[str], eval_split: str, only: set[str] | None = None) -> list[dict[str, Any]]:
    """One row a cell, with the columns of ``clmerge results``."""
    from bench.record import read_records
    from bench.report.frame import rows

    return rows([r for r in read_records(results) if only is None or r["id"] in only], stale, eval_split)


def print_table(results: Path, ids: set[str], stale: set[str], report_yaml: Path | None = None) -> None:
    """The tables of these cells on the terminal."""
    from rich.console import Console

    from bench.report import build_report

    report = build_report(results, report_yaml, stale, only=ids)
    # A pipe has no width: print wide rather than cut columns off.
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    console.print(report.terminal())


def stale_ids(results: Path, plugins: tuple[Path, ...]) -> set[str]:
    """Ids of records whose code, as it is now, differs (a plugin that is gone counts as changed)."""
    from bench.grid import cell_of
    from bench.record import iter_records

    registry = Registry.load(plugins)
    folders = [p for p in plugin_places(plugins)[1:] if p.is_dir()]
    known: dict[str, dict[str, str]] = {}
    stale = set()
    for record in iter_records(results):
        if record["status"] == "done" and "imported" not in record:
            # Repeats and task counts of a method run through the same code: it is looked up once for all of them.
            request = record.get("request") or {}
            key = json.dumps(request if "replay" in request else request | dict.fromkeys(OF_REPEATS), sort_keys=True)
            if key not in known:
                try:
                    known[key] = cell_of(request, registry, folders).code()
                except (UserError, KeyError):
                    known[key] = {}
            if record.get("code") != known[key]:
                stale.add(record["id"])
    return stale
