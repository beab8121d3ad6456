"""A cell's record and predictions, written when all is there."""

from __future__ import annotations

import hashlib
import io
import time
from pathlib import Path
from typing import Any

import numpy as np

from bench.common.files import write_atomic
from bench.common.strict_json import dumps, strict
from bench.data.stream import Stream
from bench.plan.cell import Cell
from bench.records.environment import environment
from bench.records.record import FORMAT, counts_sha256
from bench.run.resume import SoFar


def _head_of_record(cell: Cell, status: str) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "id": cell.id,
        "status": status,
        "coordinates": cell.coordinates(),
        "request": cell.request,
        "resolved": cell.resolved(),
        "method": cell.method.describe(),
        "protocol": cell.protocol_told(),
        "code": cell.code(),
        "files": cell.files_digest,
        "environment": environment(),
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def write_record(cell: Cell, folder: Path, stream: Stream, so_far: SoFar) -> dict[str, Any]:
    """The predictions and then the record of a finished cell, on disk; returns the record."""
    seconds = [task["seconds"] for task in so_far.tasks]
    domains = [task.domain for task in stream.tasks if task.domain is not None]  # in the order of the tasks
    record: dict[str, Any] = _head_of_record(cell, "done") | {
        "dataset": {"key": cell.dataset.key, "digest": stream.digest, "class_order": stream.class_order}
        | ({"domains": domains} if domains else {}),
        "counts": so_far.counts,
        "counts_taskaware": so_far.counts_taskaware,
        "before_merge": so_far.before,
        "before_merge_taskaware": so_far.before_taskaware,
        "tasks": so_far.tasks,
        "totals": {
            "train_s_alone": sum(s["train_alone"] for s in seconds),
            "train_s_spent": sum(s["train_spent"] for s in seconds),
            "merge_s": sum(s["merge"] for s in seconds),
            "head_s": sum(s["head"] for s in seconds),
            "eval_s": sum(s["eval"] for s in seconds),
            "wall_s": so_far.wall_s,
            "opt_steps": sum(t["opt_steps"] + int(t["scalars"].get("merge_steps") or 0) for t in so_far.tasks),
            "peak_mb": so_far.peak_mb,
            "carried_bytes": so_far.carried_bytes,
            "carried_image_bytes": so_far.carried_image_bytes,
        },
        "digest": so_far.tasks[-1]["served_digest"],
        "error": None,
    }
    record["counts_sha256"] = counts_sha256(record)
    told = [task.t for task in stream.tasks if so_far.counts[task.t - 1] is not None]
    of_image: dict[str, Any] = {"task": _task_of_images(stream)} if domains else {}  # else the class says it
    with io.BytesIO() as buffer:
        np.savez_compressed(
            buffer,
            t=np.array(told, dtype=np.int16),
            true=stream.test_columns.cpu().numpy().astype(np.int16),
            predicted=np.stack(so_far.predicted),
            predicted_taskaware=np.stack(so_far.predicted_taskaware),
            **of_image,
        )
        predictions = buffer.getvalue()
    record["predictions_sha256"] = hashlib.sha256(predictions).hexdigest()
    record = strict(record)
    write_atomic(folder / "pred.npz", predictions)
    write_atomic(folder / "cell.json", dumps(record, indent=1))  # last: its presence says that all is there
    (folder / "resume.safetensors").unlink(missing_ok=True)
    (folder / "progress.json").unlink(missing_ok=True)
    return record


def _task_of_images(stream: Stream) -> np.ndarray:
    """(N,) int16: which task each test image belongs to, 0 where none."""
    tasks = np.zeros(len(stream.test_columns), dtype=np.int16)
    for task in stream.tasks:
        tasks[task.test.cpu().numpy()] = task.t
    return tasks


def write_failed(cell: Cell, folder: Path, error: dict[str, Any]) -> dict[str, Any]:
    """The record of a cell that did not get through; returns it."""
    record = _head_of_record(cell, "failed") | {"error": error}
    write_atomic(folder / "cell.json", dumps(record, indent=1))
    return record
