"""One cell from start to record: the stream's tasks in order, each trained, merged, evaluated and saved."""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from bench.data.stream import Stream, TaskData
from bench.method import Rule
from bench.method.carried import nbytes
from bench.method.chain import Chain
from bench.method.protect import unchanged
from bench.method.weights import Weights
from bench.model.heads import concatenate
from bench.plan.cell import Cell
from bench.run.classifiers import Classifier, serving_of
from bench.run.evaluate import count, training_features
from bench.run.keep_weights import keep_config, keep_task
from bench.run.live_task import LiveTask
from bench.run.resume import Heartbeat, Progress, SoFar, resume, save
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
        bench.drop_backbone()  # the plugin may have written into theta_0 before it failed
        where = "".join(traceback.format_exception(error)[-4:]).strip()
        told = {"type": type(error).__name__, "message": str(error), "where": where, "attempts": beat.attempts}
        return write_failed(cell, folder, told)
    return record


def _run(cell: Cell, bench: Workbench, folder: Path, beat: Heartbeat) -> dict[str, Any]:
    run = _Run(cell, bench, folder, beat)
    for task in run.chain.tasks(run.tasks_to_train(), run.learn):
        run.evaluate(task)
        run.record(task)
    return run.finish()


class _Run:
    """One cell on its way through the stream: what its loop calls, in this order."""

    def __init__(self, cell: Cell, bench: Workbench, folder: Path, beat: Heartbeat) -> None:
        self.began, self.bench, self.folder, self.beat = time.perf_counter(), bench, folder, beat
        self.stream, self.backbone = bench.stream(cell), bench.backbone(cell)
        self.cell = cell = replace(cell, data_digest=self.stream.digest)
        self.trainer, self.rule = cell.method.build()
        self.chain = Chain(self.rule, cell.method.start, self.backbone.pretrained, self.trainer)
        self.models = bench.models(cell, self.trainer, self.rule.record)
        self.serving = serving_of(
            cell.protocol, self.backbone.dim, self.backbone.device, cell.run_seed, self.stream.scenario
        )
        self.so_far = SoFar()
        resumed = resume(cell, folder, self.trainer, self.rule, self.serving, self.backbone.pretrained)
        if resumed is not None:
            self.so_far, self.chain.served, self.chain.previous = resumed
        self.wall_before = self.so_far.wall_s
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    @property
    def joint(self) -> bool:
        """Whether the trainer sees all tasks, and is trained at the last one alone."""
        return self.trainer.data == "seen"

    def tasks_to_train(self) -> Iterator[TaskData]:
        """Those that are not finished yet; one after which nothing is trained leaves a row that does not exist."""
        for current in self.stream.tasks[len(self.so_far.counts) :]:
            if current.t in self.cell.trained_tasks:
                yield current
            else:
                _absent(self.so_far)

    def learn(self, current: TaskData, start: Weights) -> LiveTask:
        """Task t, trained from there (or taken from where its model lies), as the rule sees it."""
        self.beat("training", current.t)
        with unchanged(f"trainer {self.trainer.key}", {"what is served": self.chain.served}):
            self.model = self.models.of(current, start, self.chain.served, self.so_far.heads)
        learnt, so_far = self.model.learnt, self.so_far
        # Beside the new head, those of earlier tasks where they were trained on.
        so_far.heads = [*so_far.heads[: current.t - len(learnt.heads)], *learnt.heads]
        so_far.peak_mb = max(so_far.peak_mb, _memory_mb())
        self.beat("merging", current.t)
        return LiveTask(
            data=self.rule.reads, stream=self.stream, current=current, backbone=self.backbone,
            protocol=self.cell.protocol, heads=so_far.heads, run_seed=self.cell.run_seed, store=self.bench.store,
            pretrained=self.chain.pretrained, start=self.model.start, served=self.chain.served,
            trained=learnt.weights, recorded=learnt.recorded,
        )  # fmt: skip

    def evaluate(self, task: LiveTask) -> None:
        """Fit the classifier to the served model, predict, count."""
        self.so_far.peak_mb = max(self.so_far.peak_mb, _memory_mb())
        self.beat("evaluating", task.t)
        served, clock = self.chain.served, time.perf_counter()
        beside = self.serving.beside(self.chain.pretrained)
        self.fit_scalars = self.serving.fit(
            self.stream.tasks[: task.t] if self.joint else [task.current],
            self.model.learnt.heads if self.joint else self.model.learnt.heads[-1:],
            partial(
                training_features, self.backbone, served, self.stream, self.cell.protocol.eval_batch, beside=beside
            ),
            self.trainer.softmax,
        )
        classifier = self.serving.classifier(self.so_far.heads)
        self.head_s, clock = time.perf_counter() - clock, time.perf_counter()
        _evaluate(
            self.cell, self.bench, self.stream, task.current, self.rule, served, task.trained, classifier, beside,
            self.so_far,
        )  # fmt: skip
        self.eval_s = time.perf_counter() - clock

    def record(self, task: LiveTask) -> None:
        """Note what task t gave and cost, and save all that a resumed run goes on from."""
        so_far, learnt, served = self.so_far, self.model.learnt, self.chain.served
        carried = nbytes(self.trainer) + nbytes(self.rule) + self.serving.carried
        if self.cell.method.start == "previous" and not torch.equal(served.vector, task.trained.vector):
            carried += task.trained.nbytes
        so_far.carried_bytes = max(so_far.carried_bytes, carried)
        images = nbytes(self.trainer, images=True) + nbytes(self.rule, images=True)
        so_far.carried_image_bytes = max(so_far.carried_image_bytes, images)
        so_far.tasks.append(
            {
                "t": task.t,
                "classes": list(task.current.classes),
                **({"domain": task.current.domain} if task.current.domain is not None else {}),
                "onset": learnt.onset,
                "scalars": task.scalars | self.fit_scalars,
                "seconds": {
                    "train_alone": learnt.seconds,
                    "train_spent": self.model.spent,
                    "statistics": task.seconds["statistics"],
                    "merge": self.chain.seconds - task.seconds["spent"] + task.seconds["statistics"],
                    "head": self.head_s,
                    "eval": self.eval_s,
                },
                "opt_steps": learnt.steps,
                "trained_digest": task.trained.digest(),
                "served_digest": served.digest(),
            }
        )
        if self.cell.keep_weights:
            start = self.model.start if self.cell.method.start == "merged" else None
            keep_task(self.folder / "weights", self.backbone, task.t, learnt, start, served)
        so_far.wall_s = self.wall_before + time.perf_counter() - self.began
        if task.t < self.cell.n_tasks:
            save(self.cell, self.folder, self.trainer, self.rule, self.serving, so_far, served, task.trained)
            self.beat("finished", task.t, finished=task.t)

    def finish(self) -> dict[str, Any]:
        """The record, on disk."""
        if self.cell.keep_weights:
            keep_config(self.folder / "weights", self.cell, self.stream.cuts)
        return write_record(self.cell, self.folder, self.stream, self.so_far)


def _evaluate(
    cell: Cell, bench: Workbench, stream: Stream, current: TaskData, rule: Rule, served: Weights, trained: Weights,
    classifier: Classifier, beside: Sequence[Weights], so_far: SoFar,
) -> None:  # fmt: skip
    """Predictions and counts after task t, and of theta*_t with the heads as trained on task t before merging."""
    seen = stream.tasks[: current.t]
    [all_alone], [own_alone] = bench.predict(
        cell, trained, concatenate(stream.scenario.open_heads(so_far.heads)), [current]
    )
    if rule.experts:  # each task by its own weights and head: earlier rows stay, and the true task is given
        past = so_far.predicted_taskaware[-1] if so_far.predicted_taskaware else None
        own = (
            [torch.from_numpy(past[task.test.cpu().numpy()].astype(np.int64)) for task in seen[:-1]]
            if past is not None
            else []
        )
        everywhere = within = [*own, own_alone]
    else:
        everywhere, within = bench.predict(cell, served, classifier, seen, beside)
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
