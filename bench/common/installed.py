"""What installed packages bring through entry points: plugins, and folders of datasets, protocols, suites and reports.

An entry point that cannot be read is told once, in one line on the error stream, and left out: what other packages
bring, and what comes with the harness, works without it.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import logging
import sys
from functools import cache, lru_cache
from importlib.metadata import EntryPoint
from pathlib import Path


def entry_points(group: str) -> tuple[EntryPoint, ...]:
    """The entry points ``clmerge.<group>`` of all installed packages, in the order of package and name."""
    return _entry_points(f"clmerge.{group}", tuple(sys.path))


def package_of(entry: EntryPoint) -> str:
    """Name and version of the package that has this entry point."""
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist is not None else "a package without metadata"


def folders(group: str) -> dict[Path, str]:
    """The folders that the entry points ``clmerge.<group>`` name, each a package that holds files, and whose they are.

    The package is found, not executed; what stands above it is imported.
    """
    return dict(_folders(group, tuple(sys.path)))


@cache
def leave_out(entry: EntryPoint, why: str) -> None:
    """Say once in a process that what an entry point brings is not there, and why."""
    logging.getLogger("clmerge").warning(
        f"clmerge: package {package_of(entry)}: entry point {entry.name!r} of {entry.group} ({entry.value}): {why}; "
        "what it brings is left out; mend or uninstall the package"
    )


@lru_cache(maxsize=64)
def _entry_points(group: str, path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    """Reading what is installed takes milliseconds, and every cell asks: kept for as long as ``sys.path`` is."""
    return tuple(sorted(importlib.metadata.entry_points(group=group), key=lambda e: (package_of(e), e.name)))


@lru_cache(maxsize=64)
def _folders(group: str, path: tuple[str, ...]) -> tuple[tuple[Path, str], ...]:
    found: dict[Path, str] = {}
    for entry in entry_points(group):
        try:
            spec = importlib.util.find_spec(entry.value)
        except Exception as error:  # whatever the package above it raises
            leave_out(entry, f"{type(error).__name__}: {error}")
            continue
        if spec is None or spec.submodule_search_locations is None:
            leave_out(entry, "no such folder in the package" if spec is None else "is a module, not a folder")
            continue
        found |= {Path(place): package_of(entry) for place in spec.submodule_search_locations}
    return tuple(found.items())
