"""Accuracy matrices from other harnesses become records: shown beside ours, marked as imported, never recomputed.

One YAML file a method and stream::

    source: "PILOT, our run of 3 May 2026, commit abc1234"   # printed wherever a number appears
    dataset: cifar100
    protocol: pilot            # names the block of the table; give our protocol's name only if it is the same
    method: l2p
    title: L2P                 # default: the method
    paper: arXiv:2112.08654    # or leave it out
    totals: [1000, 1000]       # test images of each task
    runs:                      # one a repeat
      - class_order_seed: 1993
        run_seed: 0
        accuracy: [[98.3], [94.1, 96.0]]   # percent; row t: after task t, on each task so far (or on all tasks)
        # or correct: [[983], [941, 960]]
    rows: steps                # what a row is: "tasks" where row i is task i, after each task from i on (or after all)
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from pathlib import Path
from typing import Any, Literal

import pydantic

from bench.common.cache import key_of
from bench.common.errors import UserError
from bench.common.files import write_atomic
from bench.common.strict_json import dumps
from bench.config.files import read_yaml
from bench.config.schema import Section
from bench.records.record import FORMAT, counts_sha256


class ImportedRun(Section):
    """One repeat: a matrix, as percent or as counts."""

    class_order_seed: int = pydantic.Field(ge=0)
    run_seed: int = pydantic.Field(ge=0)
    accuracy: list[list[float]] | None = None
    correct: list[list[int]] | None = None

    @pydantic.model_validator(mode="after")
    def _one_of(self) -> ImportedRun:
        if (self.accuracy is None) == (self.correct is None):
            raise ValueError("give either accuracy (percent) or correct (counts)")
        return self


class ImportConfig(Section):
    """What another harness measured: see the module's docstring."""

    source: str
    dataset: str
    protocol: str
    method: str
    title: str | None = None
    paper: str | None = None
    totals: list[pydantic.PositiveInt] = pydantic.Field(min_length=1)
    rows: Literal["steps", "tasks"] = "steps"
    runs: list[ImportedRun] = pydantic.Field(min_length=1)


def read_import(path: Path) -> list[dict[str, Any]]:
    """The records of one file.

    Raises:
        UserError: file and key of what is missing, of the wrong shape, or an accuracy that no whole number of the
            test images gives.
    """
    config = read_yaml(path, ImportConfig)
    return [_record(config, run, f"{path}: runs.{i}") for i, run in enumerate(config.runs)]


def write_records(records: list[dict[str, Any]], results: Path) -> None:
    """Put them where the records of runs are."""
    for record in records:
        write_atomic(results / "runs" / record["id"] / "cell.json", dumps(record, indent=1))


def _record(config: ImportConfig, run: ImportedRun, where: str) -> dict[str, Any]:
    counts = _counts(config, run, where)
    seeds = {"class_order_seed": run.class_order_seed, "run_seed": run.run_seed}
    coordinates = {
        "dataset": config.dataset, "n_tasks": len(config.totals), "protocol": config.protocol,
        "method": config.method, "variant": config.method, "start": "-", **seeds, "eval_split": "test",
    }  # fmt: skip
    stem = f"{config.dataset}-T{len(config.totals)}-{config.protocol}-{config.method}"
    stem = re.sub(r"[^\w.-]", ".", stem) + f"-c{run.class_order_seed}-r{run.run_seed}"
    record = {
        "format": FORMAT,
        "id": f"imported-{stem}-{key_of(config.source, coordinates)[:10]}",
        "status": "done",
        "imported": {"source": config.source, "given": "accuracy" if run.correct is None else "correct"},
        "coordinates": coordinates,
        "method": {
            "key": config.method, "title": config.title or config.method, "paper": config.paper, "status": "imported",
            "about": config.source, "variant": config.method, "trainer": {}, "rule": {}, "start": "-",
        },
        "counts": counts,
        "code": {},
        "error": None,
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "digest": hashlib.sha256(json.dumps(counts).encode()).hexdigest()[:32],
    }  # fmt: skip
    return record | {"counts_sha256": counts_sha256(record)}


def _counts(config: ImportConfig, run: ImportedRun, where: str) -> list[list[list[int]]]:
    """[task after which][task] of [correct, total]."""
    totals, T = config.totals, len(config.totals)
    rows: Any = run.correct if run.accuracy is None else run.accuracy
    key = "correct" if run.accuracy is None else "accuracy"
    if len(rows) != T:
        raise UserError(f"{where}.{key}: {len(rows)} rows, but totals lists {T} tasks")
    for i, row in enumerate(rows):
        seen, which = (i + 1, "tasks so far") if config.rows == "steps" else (T - i, "tasks from its own on")
        if len(row) not in (seen, T):
            give = f"with rows: {config.rows} give {seen} ({which}) or {T}"
            raise UserError(f"{where}.{key}: row {i + 1} has {len(row)} entries; {give}")
    _check_orientation(config, rows, f"{where}.{key}")

    def count(t: int, i: int) -> list[int]:
        """Of task i after task t."""
        row, column = (t, i) if config.rows == "steps" else (i, t - T + len(rows[i]))
        return [_correct(rows[row][column], totals[i], key, f"{where}.{key}[{row}][{column}]"), totals[i]]

    return [[count(t, i) for i in range(t + 1)] for t in range(T)]


def _check_orientation(config: ImportConfig, rows: list[list[float]], where: str) -> None:
    """A square matrix says itself which way it lies, where what was not yet learnt has zeros.

    Raises:
        UserError: what we would read is all zeros, and what we would leave out is not.
    """
    T = len(rows)
    if T == 1 or any(len(row) != T for row in rows):
        return
    below, above = ([row[j] for i, row in enumerate(rows) for j in columns(i)]
                    for columns in (range, lambda i: range(i + 1, T)))  # fmt: skip
    read, left_out = (below, above) if config.rows == "steps" else (above, below)
    if not any(read) and any(left_out):
        other = "tasks" if config.rows == "steps" else "steps"
        raise UserError(
            f"{where}: the matrix lies the other way: with rows: {config.rows} every task would be at 0 from the next "
            f"one on; write rows: {other}"
        )


def _correct(value: float, total: int, key: str, where: str) -> int:
    """The count that was rounded to this percentage."""
    most = total if key == "correct" else 100
    if not 0 <= value <= most:
        raise UserError(f"{where}: {value} is not between 0 and {most}")
    if key == "correct":
        return int(value)
    nearest = round(value / 100 * total)
    decimals = len(repr(float(value)).partition(".")[2].rstrip("0"))
    # As written it stands for everything that rounds to it; one count at least must do so.
    if abs(100 * nearest / total - value) > 0.5 * 10**-decimals + 1e-9:
        raise UserError(
            f"{where}: {value} % of {total} test images is no whole number of images (nearest: {nearest}, "
            f"{100 * nearest / total:.4g} %); mend totals, or give the matrix as correct"
        )
    return nearest
