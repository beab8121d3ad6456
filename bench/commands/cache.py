"""``clmerge cache``: what trained tasks and statistics take on the disk, and their deletion."""

from __future__ import annotations

import shutil
from pathlib import Path

import click

from bench.commands.options import common


@click.group()
def cache() -> None:
    """Trained tasks and statistics that cells share."""


def _cache_files(results: Path) -> list[Path]:
    return [p for p in (results / "cache").rglob("*") if p.is_file()]


@cache.command(name="size")
@common
def cache_size(results: Path) -> None:
    """Say how large the cache is."""
    files = _cache_files(results)
    click.echo(f"{results / 'cache'}: {len(files)} artifacts, {sum(f.stat().st_size for f in files) / 1e6:.1f} MB")


@cache.command(name="prune")
@common
def cache_prune(results: Path) -> None:
    """Delete the cache; records stay, and what is needed again is computed again."""
    files = _cache_files(results)
    size = sum(f.stat().st_size for f in files)
    shutil.rmtree(results / "cache", ignore_errors=True)
    click.echo(f"{results / 'cache'}: {len(files)} artifacts, {size / 1e6:.1f} MB deleted")
