"""What a cell has made so far: saved at each task boundary, read back when it is run again; and its sign of life."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.common.files import load_tensors, save_tensors, write_atomic
from bench.method import Rule, Trainer
from bench.method.carried import pack, unpack
from bench.method.weights import Weights
from bench.model.heads import Head
from bench.plan.cell import Cell
from bench.run.classifiers import Serving

Progress = Callable[[dict[str, Any]], None]


@dataclass
class SoFar:
    """Everything that a cell has made so far; saved at each task boundary."""

    heads: list[Head] = field(default_factory=list)
    counts: list[list[list[int]] | None] = field(default_factory=list)
    counts_taskaware: list[list[list[int]] | None] = field(default_factory=list)
    before: list[list[int] | None] = field(default_factory=list)
    before_taskaware: list[list[int] | None] = field(default_factory=list)
    predicted: list[np.ndarray] = field(default_factory=list)  #: per t (N,) int16, -1 where not seen yet
    predicted_taskaware: list[np.ndarray] = field(default_factory=list)
    tasks: list[dict[str, Any]] = field(default_factory=list)
    carried_bytes: int = 0
    carried_image_bytes: int = 0  #: of these, images of past tasks
    peak_mb: float = 0.0
    wall_s: float = 0.0

    JSON = (
        "counts", "counts_taskaware", "before", "before_taskaware", "tasks", "carried_bytes", "carried_image_bytes",
        "peak_mb", "wall_s",
    )  # fmt: skip


def save(
    cell: Cell, folder: Path, trainer: Trainer, rule: Rule, serving: Serving, so_far: SoFar, served: Weights,
    trained: Weights,
) -> None:  # fmt: skip
    """Write what :func:`resume` needs to go on after the task just finished: one file, whole or not there."""
    tensors = {"served": served.vector, "trained": trained.vector}
    for i, head in enumerate(so_far.heads):
        tensors |= head.tensors(f"head.{i}.")
    tensors |= {f"serving.{k}": v for k, v in serving.tensors().items()}
    trees = {}
    for name, plugin in (("trainer", trainer), ("rule", rule)):
        memory, trees[name] = pack(plugin)
        tensors |= {f"{name}.{k}": v for k, v in memory.items()}
    for i, pair in enumerate(zip(so_far.predicted, so_far.predicted_taskaware, strict=True)):
        tensors |= {f"predicted.{i}.{j}": torch.from_numpy(p) for j, p in enumerate(pair)}
    header = {
        "code": cell.code(),
        "data": cell.data_digest,
        "heads": len(so_far.heads),
        "predicted": len(so_far.predicted),
        "memory": trees,
    }
    header["so_far"] = {name: getattr(so_far, name) for name in SoFar.JSON}
    save_tensors(folder / "resume.safetensors", tensors, header)


def resume(
    cell: Cell, folder: Path, trainer: Trainer, rule: Rule, serving: Serving, theta_0: Weights
) -> tuple[SoFar, Weights, Weights] | None:
    """What :func:`save` left, unless there is none, or the code or the data has changed since.

    A cell that keeps its weights begins again where it was begun without keeping them.
    """
    kept = load_tensors(folder / "resume.safetensors")
    if kept is None or kept[1]["code"] != cell.code() or kept[1].get("data") != cell.data_digest:
        return None
    tensors, header = kept
    done = len(header["so_far"]["counts"])
    if cell.keep_weights and not (folder / "weights" / f"task_{done}.safetensors").exists():
        return None
    device = theta_0.vector.device
    pairs = [[tensors[f"predicted.{i}.{j}"].numpy() for j in (0, 1)] for i in range(header["predicted"])]
    so_far = SoFar(
        heads=[Head.of(tensors, device, f"head.{i}.") for i in range(header["heads"])],
        predicted=[p[0] for p in pairs],
        predicted_taskaware=[p[1] for p in pairs],
        **header["so_far"],
    )
    for name, plugin in (("trainer", trainer), ("rule", rule)):
        unpack(plugin, _under(f"{name}.", tensors), header["memory"][name], theta_0)
    serving.restore(_under("serving.", tensors))
    served, trained = (Weights(tensors[n].to(device), theta_0.layout) for n in ("served", "trained"))
    return so_far, served, trained


def _under(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}


class Heartbeat:
    """``progress.json``: what the live display reads, and how often a process died on this cell."""

    def __init__(self, cell: Cell, folder: Path, job: str, progress: Progress) -> None:
        self._path, self._progress = folder / "progress.json", progress
        self._told: dict[str, Any] = {
            "id": cell.id,
            "n_tasks": cell.n_tasks,
            "job": job,
            "code": cell.code(),
            "finished": 0,
            "pid": os.getpid(),
        }
        self.attempts = 1
        try:
            before = json.loads(self._path.read_text())
            if before["code"] == cell.code():  # else the cell starts over
                self._told["finished"] = int(before["finished"])
            if job and before["job"] == job:
                self.attempts = int(before["attempts"]) + 1
        except (OSError, ValueError, KeyError, TypeError):
            pass
        self("starting", self._told["finished"] + 1)

    def __call__(self, phase: str, task: int, **more: Any) -> None:
        """Tell what begins now."""
        self._told |= {"phase": phase, "task": task, "attempts": self.attempts, "updated": time.time(), **more}
        write_atomic(self._path, json.dumps(self._told))
        self._progress(dict(self._told))
