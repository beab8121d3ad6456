"""One cell from start to record: the stream's tasks in order, each trained, merged, evaluated and saved."""

from __future__ import annotations

import time
import traceback
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from bench.data.stream import Stream, TaskData
from bench.method import Rule, Trainer
from bench.method.carried import nbytes
from bench.method.weights import Weights
from bench.model.backbone import Backbone
from bench.model.heads import Head, concatenate
from bench.plan.cell import Cell
from bench.plan.replayed import ReplayCell
from bench.run.classifiers import Serving, serving_of
from bench.run.evaluate import count, training_features
from bench.run.live_task import LiveTask
from bench.run.resume import Heartbeat, Progress, SoFar, resume, save
from bench.run.task_models import given_model, given_start, keep_config, keep_task
from bench.run.train import Learnt, train
from bench.run.workbench import Workbench, threads
from bench.run.write_record import write_failed, write_record


def run_cell(cell: Cell, bench: Workbench, job: str = "", progress: Progress = lambda _: None) -> dict[str, Any]:
    """Run a cell to its record, resuming after its last finished task, and return the record.

    An exception inside the cell becomes a record with status "failed"; ``KeyboardInterrupt`` and the like pass through
    and leave what is finished for the next run. A cell whose process died twice under one ``job`` is failed unrun.
    """
    folder = bench.results / "runs" / cell.id
    folder.mkdir(parents=True, exist_ok=True)
    beat = Heartbeat(cell, folder, job, progress)
    if beat.attempts > 2:
        message = "its process died twice (out of memory?); the other cells went on"
        return write_failed(cell, folder, {"type": "ProcessDied", "message": message, "where": "", "attempts": 2})
    try:
        with threads(cell.protocol.threads):
            record = _run(cell, bench, folder, beat)
    except Exception as error:
        where = "".join(traceback.format_exception(error)[-4:]).strip()
        told = {"type": type(error).__name__, "message": str(error), "where": where, "attempts": beat.attempts}
        return write_failed(cell, folder, told)
    return record


def _run(cell: Cell, bench: Workbench, folder: Path, beat: Heartbeat) -> dict[str, Any]:
    began, stream, backbone = time.perf_counter(), bench.stream(cell), bench.backbone(cell)
    cell = replace(cell, data_digest=stream.digest)
    trainer, rule = cell.method.build()
    theta_0 = backbone.pretrained
    trainer.begin(theta_0)
    rule.begin(theta_0)
    serving = serving_of(cell.protocol, backbone.dim, backbone.device, cell.run_seed)
    resumed = resume(cell, folder, trainer, rule, serving, theta_0)
    so_far, served, trained = resumed or (SoFar(), theta_0, theta_0)
    wall_before = so_far.wall_s
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()

    for current in stream.tasks[len(so_far.counts) :]:
        if current.t not in cell.trained_tasks:
            _absent(so_far)
            continue
        beat("training", current.t)
        joint = trainer.data == "seen"
        start = {"pretrained": theta_0, "previous": trained, "merged": served}[cell.method.start]
        if isinstance(cell, ReplayCell):
            start, learnt, spent = (
                given_start(cell, backbone, current.t, start),
                given_model(cell, backbone, current.t),
                0.0,
            )
        else:
            learnt, spent = _train_or_load(cell, bench, stream, backbone, current, trainer, start, rule.record)
        trained = learnt.weights
        so_far.heads = learnt.heads if joint else [*so_far.heads, *learnt.heads]
        so_far.peak_mb = max(so_far.peak_mb, _memory_mb())

        beat("merging", current.t)
        task = LiveTask(
            data=rule.data, stream=stream, current=current, backbone=backbone, protocol=cell.protocol,
            heads=so_far.heads, run_seed=cell.run_seed, store=bench.store, pretrained=theta_0, start=start,
            served=served, trained=trained, recorded=learnt.recorded,
        )  # fmt: skip
        clock = time.perf_counter()
        served = rule.merge(task).detach()
        trainer.learnt(replace(task, data="labelled", scalars=task.scalars, seconds=task.seconds))
        merged = time.perf_counter() - clock - task.seconds["spent"] + task.seconds["statistics"]
        if not bool(torch.isfinite(served.vector).all()):
            raise FloatingPointError(f"rule {rule.key} served non-finite weights after task {current.t}")
        so_far.peak_mb = max(so_far.peak_mb, _memory_mb())

        beat("evaluating", current.t)
        clock = time.perf_counter()
        told = serving.fit(
            stream.tasks[: current.t] if joint else [current], learnt.heads,
            partial(training_features, backbone, served, stream, cell.protocol.eval_batch), trainer.softmax,
        )  # fmt: skip
        fitted, clock = time.perf_counter() - clock, time.perf_counter()
        _evaluate(cell, bench, stream, current, rule, served, trained, serving, so_far)
        carried = nbytes(trainer) + nbytes(rule) + serving.carried
        if cell.method.start == "previous" and not torch.equal(served.vector, trained.vector):
            carried += trained.nbytes
        so_far.carried_bytes = max(so_far.carried_bytes, carried)
        so_far.carried_image_bytes = max(so_far.carried_image_bytes, nbytes(rule, images=True))
        so_far.tasks.append(
            {
                "t": current.t,
                "classes": list(current.classes),
                "onset": learnt.onset,
                "scalars": task.scalars | told,
                "seconds": {
                    "train_alone": learnt.seconds,
                    "train_spent": spent,
                    "statistics": task.seconds["statistics"],
                    "merge": merged,
                    "head": fitted,
                    "eval": time.perf_counter() - clock,
                },
                "opt_steps": learnt.steps,
                "trained_digest": trained.digest(),
                "served_digest": served.digest(),
            }
        )
        if cell.request.get("keep_weights"):
            kept_start = start if cell.method.start == "merged" else None
            keep_task(folder / "weights", backbone, current.t, learnt, kept_start, served)
        so_far.wall_s = wall_before + time.perf_counter() - began
        if current.t < cell.n_tasks:
            save(cell, folder, trainer, rule, serving, so_far, served, trained)
            beat("finished", current.t, finished=current.t)
    if cell.request.get("keep_weights"):
        keep_config(folder / "weights", cell, [list(task.classes) for task in stream.tasks])
    return write_record(cell, folder, stream, so_far)


def _train_or_load(
    cell: Cell, bench: Workbench, stream: Stream, backbone: Backbone, current: TaskData, trainer: Trainer,
    start: Weights, record: tuple[str, ...],
) -> tuple[Learnt, float]:  # fmt: skip
    """theta*_t, from the store where it is there with the by-products asked for; and the seconds spent just now."""
    key = cell.train_keys[current.t]
    kept = bench.store.load("train", key)
    if kept is not None and set(record) <= set(kept[1]["record"]):
        tensors, header = kept
        dense = {
            k: Weights(v.to(backbone.device), start.layout) for k, v in tensors.items() if not k.startswith("head")
        }
        heads = [Head.of(tensors, backbone.device, f"head.{i}.") for i in range(header["heads"])]
        recorded = {k: [dense[f"{k}.{i}"].to("cpu") for i in range(n)] for k, n in header["recorded"].items()}
        return Learnt(dense["weights"], heads, header["steps"], header["seconds"], header["onset"], recorded), 0.0
    if kept is not None:  # by-products that others have asked for stay, lest two rules undo each other's in turn
        kinds = {wish.partition(":")[0] for wish in record}
        record = (*record, *(wish for wish in kept[1]["record"] if wish.partition(":")[0] not in kinds))
    tasks = stream.tasks[: current.t] if trainer.data == "seen" else [current]
    learnt = train(backbone, stream, tasks, trainer, start, cell.protocol, cell.run_seed, record)
    # A task that began at merged weights is nobody else's: only the first one, begun at theta_0, is worth keeping.
    if cell.chain_is_shared or current.t == 1:
        tensors = {"weights": learnt.weights.vector}
        for i, head in enumerate(learnt.heads):
            tensors |= head.tensors(f"head.{i}.")
        for kind, copies in learnt.recorded.items():
            tensors |= {f"{kind}.{i}": w.vector for i, w in enumerate(copies)}
        header = {
            "record": list(record), "recorded": {k: len(v) for k, v in learnt.recorded.items()},
            "heads": len(learnt.heads), "steps": learnt.steps, "seconds": learnt.seconds, "onset": learnt.onset,
        }  # fmt: skip
        bench.store.save("train", key, tensors, header)
    return learnt, learnt.seconds


def _evaluate(
    cell: Cell, bench: Workbench, stream: Stream, current: TaskData, rule: Rule, served: Weights, trained: Weights,
    serving: Serving, so_far: SoFar,
) -> None:  # fmt: skip
    """Predictions and counts after task t, and of theta*_t with the heads as trained on task t before merging."""
    seen = stream.tasks[: current.t]
    [all_alone], [own_alone] = bench.predict(cell, trained, concatenate(so_far.heads), [current])
    if rule.experts:  # each task by its own weights and head: earlier rows stay, and the true task is given
        past = so_far.predicted_taskaware[-1] if so_far.predicted_taskaware else None
        own = (
            [torch.from_numpy(past[task.test.cpu().numpy()].astype(np.int64)) for task in seen[:-1]]
            if past is not None
            else []
        )
        everywhere = within = [*own, own_alone]
    else:
        everywhere, within = bench.predict(cell, served, serving.classifier(so_far.heads), seen)
    for told, kept, table in (
        (everywhere, so_far.predicted, so_far.counts),
        (within, so_far.predicted_taskaware, so_far.counts_taskaware),
    ):
        columns = np.full(len(stream.test_columns), -1, dtype=np.int16)
        for task, mine in zip(seen, told, strict=True):
            columns[task.test.cpu().numpy()] = mine.numpy()
        kept.append(columns)
        table.append([list(count(mine, stream, task)) for task, mine in zip(seen, told, strict=True)])
    so_far.before.append(list(count(own_alone if rule.experts else all_alone, stream, current)))
    so_far.before_taskaware.append(list(count(own_alone, stream, current)))


def _absent(so_far: SoFar) -> None:
    """A row that does not exist: nothing was trained after this task."""
    for table in (so_far.counts, so_far.counts_taskaware, so_far.before, so_far.before_taskaware):
        table.append(None)


def _memory_mb() -> float:
    """Megabytes in use: the peak allocated on the GPU, or this process's resident memory, sampled."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return psutil.Process().memory_info().rss / 2**20
