"""The record of a cell, read and checked: one whose checksum does not fit is damaged, and no number of it is used.

Nothing heavy is imported: the planner and ``clmerge results`` must answer at once.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from bench.records import metrics

FORMAT = 1
COORDINATES = ("dataset", "n_tasks", "protocol", "method", "variant", "start", "class_order_seed", "run_seed")

Record = dict[str, Any]

_INTEGER_COORDINATES = ("n_tasks", "class_order_seed", "run_seed")


class Standing(NamedTuple):
    """How a finished record stands to today's code and configuration: ``done``, ``stale`` or ``outdated``, and why."""

    status: str
    why: str = ""


class Damaged(ValueError):
    """Why a record cannot be trusted, in a few words."""


def read_record(path: Path) -> Record:
    """One ``cell.json``. Never raises for what stands in it: an unreadable, half-written, foreign or hand-edited one
    becomes a record with ``status`` "damaged" and a ``reason``, keeping its coordinates where they can be read.
    """
    raw: Any = None
    try:
        # Older records held NaN and Infinity as such.
        raw = json.loads(path.read_bytes(), parse_constant=lambda _: None)
        check(raw, path.parent.name)
        return dict(raw)
    except (Damaged, OSError, ValueError, RecursionError) as error:
        reason = str(error) if isinstance(error, Damaged) else f"unreadable: {type(error).__name__}"
        return _damaged(path.parent.name, raw, reason)


def iter_records(results_dir: Path) -> Iterator[Record]:
    """Every ``runs/*/cell.json`` below ``results_dir``, in the order of the folder names, one in memory at a time.

    Folders without a ``cell.json`` are cells that have not finished and are left out.
    """
    for path in sorted((results_dir / "runs").glob("*/cell.json")):
        yield read_record(path)


def read_records(results_dir: Path) -> list[Record]:
    """All of :func:`iter_records`."""
    return list(iter_records(results_dir))


def check(record: Any, folder: str) -> None:
    """Raise :class:`Damaged` unless ``record`` is a whole, possible and unedited record that belongs in ``folder``."""
    if not isinstance(record, dict):
        raise Damaged("not a record")
    if record.get("format") != FORMAT:
        raise Damaged(f"record format {record.get('format')!r}, this version reads {FORMAT}")
    # A copied folder would count one run twice.
    if record.get("id") != folder:
        raise Damaged(f"its id is {record.get('id')!r}, not the name of its folder")
    if record.get("status") not in ("done", "failed"):
        raise Damaged(f"unknown status {record.get('status')!r}")
    if _coordinates(record) is None:
        raise Damaged("incomplete coordinates")
    if not _is_method(record.get("method")) or not isinstance(record.get("totals") or {}, dict):
        raise Damaged("method or totals are not what a record has")
    for name, value in (record.get("totals") or {}).items():
        if value is not None and (type(value) not in (int, float) or not math.isfinite(value)):
            raise Damaged(f"totals {name} is not a number")
    expected = record.get("counts_sha256")
    if expected is not None and expected != counts_sha256(record):
        raise Damaged("edited by hand (the counts do not match their checksum)")
    if record["status"] == "done":
        _check_counts(record)


def counts_sha256(record: Mapping[str, Any]) -> str:
    """The checksum that a record carries of its ``counts`` and ``counts_taskaware``, as hex SHA-256."""
    pair = [record.get("counts"), record.get("counts_taskaware")]
    return hashlib.sha256(json.dumps(pair, separators=(",", ":")).encode()).hexdigest()


def _coordinates(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """The coordinates, ``None`` unless all are there and of their type."""
    found = record.get("coordinates")
    if not isinstance(found, dict):
        return None
    for name in (*COORDINATES, "eval_split"):
        value = found.get(name)
        if type(value) is not (int if name in _INTEGER_COORDINATES else str):
            return None
    return found if found["n_tasks"] > 0 else None


def _is_method(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(name, ""), str) for name in ("title", "status"))


def _check_counts(record: Mapping[str, Any]) -> None:
    triangles: dict[str, Any] = {"counts": record.get("counts")}
    if record.get("counts_taskaware") is not None:
        triangles["counts_taskaware"] = record["counts_taskaware"]
    try:
        for name, triangle in triangles.items():
            metrics.check(triangle)
            if len(triangle) != record["coordinates"]["n_tasks"] or triangle[-1] is None:
                raise Damaged(f"{name} do not reach the last task")
        for name in ("before_merge", "before_merge_taskaware"):
            for i, pair in enumerate(record.get(name) or ()):
                if pair is not None:
                    metrics.check_pair(pair, f"{name}, task {i}")
    except Damaged:
        raise
    except (ValueError, TypeError) as error:
        raise Damaged(str(error)) from error


def _damaged(folder: str, raw: Any, reason: str) -> Record:
    """A stand-in that keeps only what identifies the cell: no number of a damaged record is shown."""
    raw = raw if isinstance(raw, dict) else {}
    method = raw.get("method")
    return {
        "id": folder,
        "status": "damaged",
        "reason": reason,
        "coordinates": _coordinates(raw) or {},
        "method": method if _is_method(method) else {},
    }
