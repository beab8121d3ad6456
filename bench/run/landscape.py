"""The path that a merge moves along: w(a) = (1 - a) theta_hat_{t-1} + a theta*_t, read on test images for many a.

At a = 0 the old served model, at a = 1 the newly trained one, both with the heads of tasks 1..t. P&M (arXiv:2505.22389)
chooses a on this path in closed form; a running average takes 1/t. What a rule served is a point on the path or beside
it: its place is the projection a = <theta_hat_t - theta_hat_{t-1}, D> / <D, D> with D = theta*_t - theta_hat_{t-1}, and
``off_path`` its distance from there relative to |D|.

Read from the weights that a run has kept (``keep_weights``), with the run's own stream, heads and forward pass.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from bench.common.csv_text import csv_text
from bench.common.errors import UserError
from bench.data.stream import Stream, TaskData
from bench.method.weights import Weights
from bench.model.backbone import Backbone
from bench.model.heads import Head, concatenate
from bench.plan.cell import Cell
from bench.run.workbench import Workbench, threads

LOW, HIGH = -0.2, 1.2
COLUMNS = (
    "t", "point", "alpha", "task", "images", "correct", "correct_taskaware", "accuracy", "accuracy_taskaware", "loss",
    "loss_taskaware",
)  # fmt: skip


@dataclass(frozen=True)
class Reading:
    """One task's test images under one set of weights; losses are mean cross-entropies in nats.

    ``correct`` and ``loss`` are among the classes of tasks 1..t, ``*_taskaware`` among those of the image's own task.
    """

    task: int
    images: int
    correct: int
    correct_taskaware: int
    loss: float
    loss_taskaware: float


@dataclass(frozen=True)
class Point:
    """Readings of tasks 1..t somewhere on the path, or of what was served (``on_path`` false)."""

    alpha: float
    readings: tuple[Reading, ...]
    on_path: bool = True

    def accuracy(self, tasks: slice, taskaware: bool = False) -> float:
        """Percent right on the images of some of the tasks."""
        mine = self.readings[tasks]
        right = sum(r.correct_taskaware if taskaware else r.correct for r in mine)
        return 100 * right / sum(r.images for r in mine)

    def loss(self, tasks: slice, taskaware: bool = False) -> float:
        """Mean cross-entropy over the images of some of the tasks."""
        mine = self.readings[tasks]
        total = sum(r.images * (r.loss_taskaware if taskaware else r.loss) for r in mine)
        return total / sum(r.images for r in mine)


@dataclass(frozen=True)
class Step:
    """The path of the merge after task t.

    Attributes:
        points: on the path, by a.
        served: what the rule served.
        closed_form: the unclamped closed-form alpha, where the rule logged one (``alpha_raw``).
        off_path: distance of the served weights from the path, relative to the path's length.
        differing: predictions that differ from the record's: old tasks at a = 0 among the old classes, the new task at
            a = 1, and all tasks as served. Rounding of another machine can make a few.
    """

    t: int
    points: tuple[Point, ...]
    served: Point
    closed_form: float | None
    off_path: float
    differing: int

    def best(self) -> dict[str, float]:
        """a of the least losses and of the highest accuracy of all tasks seen, on these very test images."""
        seen = slice(None)
        return {
            "least loss": min(self.points, key=lambda p: p.loss(seen)).alpha,
            "least loss, task given": min(self.points, key=lambda p: p.loss(seen, True)).alpha,
            "best accuracy": max(self.points, key=lambda p: p.accuracy(seen)).alpha,
        }


def grid(step: float) -> list[float]:
    """Multiples of ``step`` from -0.2 to 1.2, with 0, 1 and both ends among them whatever the step."""
    inside = range(math.ceil(LOW / step - 1e-9), math.floor(HIGH / step + 1e-9) + 1)
    return sorted({LOW, 0.0, 1.0, HIGH, *(round(i * step, 10) for i in inside)})


def check_cell(cell: Cell) -> None:
    """Raise :class:`UserError` where a cell has no such path."""
    method, head = cell.method, cell.protocol.head.kind
    if cell.n_tasks < 2:
        raise UserError(f"--tasks: {cell.dataset.key} with one task has no merge to look at; ask for 2 or more")
    if method.trainer.data == "seen" or not method.trainer.adapts(2) or method.rule.experts:
        raise UserError(f"--methods: {method.key!r} moves no served model towards a newly trained one; leave it out")
    if method.trainer.heads == "seen":
        raise UserError(
            f"--methods: {method.key!r} trains the heads of earlier tasks on, so old and new weights have other heads; "
            "leave it out"
        )
    if head not in ("linear", "zero_shot"):
        raise UserError(
            f"--methods: {method.key!r}: heads of kind {head!r} are fitted to the served weights and would have to be "
            "fitted at every point; use a method with trained heads"
        )


def landscape(cell: Cell, record: dict[str, Any], bench: Workbench, step: float = 0.05) -> list[Step]:
    """The paths of the merges after tasks 2..T.

    Args:
        cell: checked by :func:`check_cell`.
        record: of its run; the kept weights lie in ``weights`` beside it.
        bench: of the results folder that the run is in.
        step: between two values of a.

    Raises:
        UserError: kept weights are missing, or are not those of the record.
    """
    folder = bench.results / "runs" / cell.id / "weights"
    stream, backbone = bench.stream(cell), bench.backbone(cell)
    heads = [Head.of(_tensors(folder / "head_1.safetensors"), backbone.device)]
    old = _weights(folder / "served_1.safetensors", backbone, record["tasks"][0]["served_digest"])
    steps = []
    with threads(cell.protocol.threads):
        for task in stream.tasks[1:]:
            told, t = record["tasks"][task.t - 1], task.t
            trained = _weights(folder / f"task_{t}.safetensors", backbone, told["trained_digest"])
            served = _weights(folder / f"served_{t}.safetensors", backbone, told["served_digest"])
            heads.append(Head.of(_tensors(folder / f"head_{t}.safetensors"), backbone.device))
            steps.append(_step(cell, record, backbone, stream, heads, old, trained, served, t, step))
            old = served
    return steps


def _step(
    cell: Cell, record: dict[str, Any], backbone: Backbone, stream: Stream, heads: Sequence[Head], old: Weights,
    trained: Weights, served: Weights, t: int, step: float,
) -> Step:  # fmt: skip
    seen, D = stream.tasks[:t], trained - old
    length = D.dot(D)
    used = (served - old).dot(D) / length if length else 0.0
    off_path = (served - old - D * used).norm() / math.sqrt(length) if length else 0.0
    closed_form = record["tasks"][t - 1]["scalars"].get("alpha_raw")
    inside = [a for a in (1 / t, closed_form) if a is not None and LOW <= a <= HIGH]
    points, differing = [], 0
    for alpha in sorted({*grid(step), *inside}):
        logits = _logits(backbone, old * (1 - alpha) + trained * alpha, heads, stream, seen, cell.protocol.eval_batch)
        points.append(Point(alpha, _readings(logits, stream, seen, cell.protocol.train.temperature)))
        if alpha == 0:
            known = _logits(backbone, old, heads[:-1], stream, seen[:-1], cell.protocol.eval_batch)
            right = [int((x.argmax(1) == _truth(stream, task)).sum()) for x, task in zip(known, seen[:-1], strict=True)]
            differing += _differing(right, record["counts"][t - 2])
        if alpha == 1:
            differing += _differing([points[-1].readings[-1].correct], [record["before_merge"][t - 1]])
    logits = _logits(backbone, served, heads, stream, seen, cell.protocol.eval_batch)
    there = Point(used, _readings(logits, stream, seen, cell.protocol.train.temperature), on_path=False)
    differing += _differing([r.correct for r in there.readings], record["counts"][t - 1])
    return Step(t, tuple(points), there, closed_form, off_path, differing)


@torch.inference_mode()
def _logits(
    backbone: Backbone, weights: Weights, heads: Sequence[Head], stream: Stream, tasks: Sequence[TaskData], batch: int
) -> list[Tensor]:
    """Per task (images, classes seen), in the batches that a run evaluates in."""
    head, index = concatenate(stream.scenario.open_heads(heads)), torch.cat([task.test for task in tasks])
    found = torch.cat([head(backbone.features(weights, stream.test_images[part])) for part in index.split(batch)])
    return list(found.split([len(task.test) for task in tasks]))


def _readings(
    logits: Sequence[Tensor], stream: Stream, tasks: Sequence[TaskData], temperature: float
) -> tuple[Reading, ...]:
    out = []
    for mine, task in zip(logits, tasks, strict=True):
        truth, first = _truth(stream, task), task.columns.start
        own = mine[:, first : task.columns.stop]
        out.append(
            Reading(
                task.t,
                len(truth),
                int((mine.argmax(1) == truth).sum()),
                int((own.argmax(1) + first == truth).sum()),
                float(cross_entropy(mine.double() / temperature, truth)),
                float(cross_entropy(own.double() / temperature, truth - first)),
            )
        )
    return tuple(out)


def _truth(stream: Stream, task: TaskData) -> Tensor:
    return stream.test_columns[task.test]


def _differing(right: Sequence[int], counts: Sequence[Sequence[int]]) -> int:
    return sum(abs(a - pair[0]) for a, pair in zip(right, counts, strict=True))


def _tensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not readable ({error}); run the cell again with --rerun done") from None


def _weights(path: Path, backbone: Backbone, digest: str) -> Weights:
    own = backbone.own_names(_tensors(path))
    found = backbone.pretrained.with_tensors({n: own[n] for n in backbone.pretrained.layout.names})
    if found.digest() != digest:
        raise UserError(f"{path}: not the weights of its record; run the cell again with --rerun done")
    return found


# ---- what is written ---------------------------------------------------------------------------------------------
def csv(steps: Sequence[Step]) -> str:
    """One line a t, point and task; numbers unrounded, accuracies in percent."""
    lines = []
    for step in steps:
        for point in (*step.points, step.served):
            place = {"t": step.t, "point": "path" if point.on_path else "served", "alpha": point.alpha}
            for r in point.readings:
                made = {
                    "accuracy": 100 * r.correct / r.images, "accuracy_taskaware": 100 * r.correct_taskaware / r.images
                }  # fmt: skip
                lines.append(place | vars(r) | made)
    return csv_text(lines, COLUMNS)
