"""How a command ends that ran cells."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from bench.execute.execute import Outcome


def exit_where_failed(outcome: Outcome, cells: int | None = None, more: str = "") -> None:
    """Exit 1, with a line on standard error, where cells failed; return where none did.

    Args:
        outcome: what became of the cells that were run.
        cells: how many were asked for, where that is worth saying.
        more: goes on with the line.
    """
    if outcome.failed:
        of_all = "" if cells is None else f" of {cells}"
        click.echo(f"{len(outcome.failed)}{of_all} cells failed; the same command tries them again{more}", err=True)
        sys.exit(outcome.exit_code)
