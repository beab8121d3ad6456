"""A trial: the cells that one process runs, one after the other. It crosses process borders as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def record_path(results: Path, cell_id: str) -> Path:
    """Where a cell's record is, or will be."""
    return results / "runs" / cell_id / "cell.json"


def stamp(path: Path) -> int | None:
    """Tells one version of a file from the next: its modification time in ns, None where there is no file."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None


def progress_of(results: Path, cell_id: str, job: str) -> dict[str, Any] | None:
    """What a cell last told in ``progress.json``, None where it has not begun under this job."""
    try:
        told: dict[str, Any] = json.loads((results / "runs" / cell_id / "progress.json").read_text())
        return told if told["job"] == job else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def starts_allowed(spec: dict[str, Any]) -> int:
    """How often a trial's process may have been started: twice more for each cell that has begun, and thrice for
    nothing, so that a machine on which the imports alone kill a process does not try for ever.
    """
    results = Path(spec["results"])
    begun = sum(
        progress_of(results, cell_id, spec["job"]) is not None or stamp(record_path(results, cell_id)) != before
        for cell_id, before in spec["before"].items()
    )
    return 3 + 2 * begun


def run_trial(spec: dict[str, Any]) -> None:
    """Bring every cell of a trial to a record, except those that got one since the trial was planned.

    So a trial whose process died is simply run again: its finished cells are not redone, an unfinished one goes on
    after its last finished task. A lock on each cell's folder keeps every other process out of it, be it another
    command on the same grid or a worker that outlived its command; cells that are locked are left for the end.

    Args:
        spec: JSON-able. ``cells`` (see :meth:`bench.plan.cell.Cell.as_json`), ``before`` (cell id to the
            :func:`stamp` of its record when it was planned), ``results``, ``data``, ``plugins`` (absolute paths),
            ``use_cache``, ``gpu`` (whether it may be used), ``job`` (one id for every trial of a command).

    Raises:
        UserError: a plugin file or a file of weights has changed since it was planned.
        OSError: the results folder cannot be written.
    """
    import torch
    from filelock import FileLock, Timeout

    from bench.common.cache import Store
    from bench.plan.replayed import cell_from_json
    from bench.registry import Registry
    from bench.run.cell import run_cell
    from bench.run.workbench import Workbench

    plugins = [Path(place) for place in spec["plugins"]]
    registry = Registry.load(plugins, check_names=False)
    results = Path(spec["results"])
    device = "cuda" if spec["gpu"] and torch.cuda.is_available() else "cpu"
    workbench = Workbench(results, Path(spec["data"]), Store(results / "cache", spec["use_cache"]), device)
    todo = [cell_from_json(told, registry) for told in spec["cells"]]
    forever = -1
    for patience in (0, forever):
        locked = []
        for cell in todo:
            record = record_path(results, cell.id)
            record.parent.mkdir(parents=True, exist_ok=True)
            try:
                with FileLock(record.parent / ".lock", timeout=patience):
                    if stamp(record) == spec["before"][cell.id]:
                        for half in record.parent.glob(".*.tmp"):  # what a killed process was writing
                            half.unlink()
                        run_cell(cell, workbench, spec["job"])
            except Timeout:
                locked.append(cell)
        todo = locked
