"""From a suite to cells to trials, all checked before anything runs. Torch-free, so planning takes a moment."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.config import (
    DATASETS,
    DatasetConfig,
    ProtocolConfig,
    SuiteConfig,
    for_dataset,
    load_dataset_config,
    load_protocol,
    weights_file,
)
from bench.data.dataset import availability, prepared_key
from bench.errors import UserError
from bench.method import Start
from bench.record import read_record, read_records
from bench.registry import Method, Registry, code_of_class, code_of_modules
from bench.store import Store, key_of, write_atomic

TRAINING_CODE = ("train.py", "backbone.py", "heads.py", "stream.py", "weights.py", "seeds.py", "method.py", "data")
MERGING_CODE = ("task.py", "statistics.py", "evaluate.py", "minimise.py")


@dataclass(frozen=True)
class Cell:
    """One run of the grid: dataset x T x method x protocol x class_order_seed x run_seed."""

    dataset: DatasetConfig
    n_tasks: int
    protocol: ProtocolConfig  #: with this dataset's overrides applied
    method: Method
    class_order_seed: int
    run_seed: int
    eval_split: str
    request: dict[str, Any] = field(compare=False)  #: how to make this cell again in another process (JSON-able)

    @cached_property
    def id(self) -> str:
        """Readable, and ending in a hash of everything that defines the cell (but not of any code)."""
        about = {"title", "about"}
        identity = key_of(
            prepared_key(self.dataset),
            self.n_tasks,
            self.protocol.model_dump(
                mode="json", exclude={*about, "key", "tuned", "per_dataset", "variant_of", "seconds_per_step"}
            ),
            self.method.identity(),
            self.class_order_seed,
            self.run_seed,
            self.eval_split,
        )
        method = "".join(c if c.isalnum() or c in "_-" else "." for c in self.method.key)[:48]
        split = "" if self.eval_split == "test" else f"-{self.eval_split}"
        protocol = self.protocol.variant_of or self.protocol.key
        seeds = f"c{self.class_order_seed}-r{self.run_seed}"
        return f"{self.dataset.key}-T{self.n_tasks}-{protocol}{split}-{method}-{seeds}-{identity[:10]}"

    def coordinates(self) -> dict[str, Any]:
        """The cell's place in the grid, as records and tables have it."""
        return {
            "dataset": self.dataset.key,
            "n_tasks": self.n_tasks,
            "protocol": self.protocol.key,
            "method": self.method.key,
            "variant": self.method.variant,
            "start": self.method.start,
            "class_order_seed": self.class_order_seed,
            "run_seed": self.run_seed,
            "eval_split": self.eval_split,
        }

    def code(self) -> dict[str, str]:
        """Hashes of the code that training, and that merging and evaluation, run through."""
        return {
            "train": key_of(code_of_modules(*TRAINING_CODE), code_of_class(self.method.trainer))[:16],
            "method": key_of(code_of_modules(*MERGING_CODE), code_of_class(self.method.rule))[:16],
        }

    @cached_property
    def trained_tasks(self) -> list[int]:
        """The t at which something is trained: all, or only the last for a trainer that sees all data."""
        return [self.n_tasks] if self.method.trainer.data == "seen" else list(range(1, self.n_tasks + 1))

    @cached_property
    def train_keys(self) -> dict[int, str]:
        """For each trained t, the key of its artifact: a hash of everything the training is a function of.

        Where a training starts from what was made before (previous or merged weights, a trainer with memory), the
        key of that stands for it, so keys are known before anything is computed.
        """
        code, protocol = self.code(), self.protocol
        trainer = self.method.identity()["trainer"]
        base = [
            prepared_key(self.dataset),
            protocol.model_dump(mode="json", include={"backbone", "adapter", "train", "head", "threads"}),
            trainer,
            code["train"],
            self.run_seed,
            [self.eval_split, protocol.val_fraction if self.eval_split == "val" else None],
            version("torch"),
        ]
        served = parent = "pretrained"
        keys: dict[int, str] = {}
        remembers = bool(self.method.trainer.states())
        edges = [self.dataset.classes * i // self.n_tasks for i in range(self.n_tasks + 1)]
        order = self._class_order()
        for t in self.trained_tasks:
            seen = order[: edges[t]]
            classes = seen if self.method.trainer.data == "seen" else order[edges[t - 1] : edges[t]]
            # A joint training's heads have the tasks' borders; any other sees nothing of the stream but its classes.
            borders = edges if self.method.trainer.data == "seen" else None
            begins = {"pretrained": "pretrained", "previous": parent, "merged": served}[self.method.start]
            keys[t] = key_of("train", base, classes, borders, begins, parent if remembers else None)
            parent = keys[t]
            served = key_of(
                "served", served, parent, self.method.identity()["rule"], code["method"], protocol.fisher_samples
            )
        return keys

    def _class_order(self) -> list[int]:
        import numpy as np

        return [int(c) for c in np.random.RandomState(self.class_order_seed).permutation(self.dataset.classes)]

    @property
    def chain_is_shared(self) -> bool:
        """Whether other rules can use this cell's trainings (they do not start from what this rule served)."""
        return self.method.start != "merged"

    def opt_steps(self) -> int:
        """Optimiser steps of all trainings, estimated from the dataset's counts."""
        images = self.dataset.train * (1.0 if self.eval_split == "test" else 1 - self.protocol.val_fraction)
        per_task = images if self.method.trainer.data == "seen" else images / self.n_tasks
        return len(self.trained_tasks) * self.protocol.train.epochs * math.ceil(per_task / self.protocol.train.batch)


@dataclass
class Plan:
    """Everything that is asked for, and what of it is there already."""

    cells: list[Cell]
    done: list[str]  #: ids with a record of the current code
    stale: list[str]  #: ids with a record of other code
    failed: list[str]  #: ids whose last run failed; they are tried again
    partial: dict[str, int]  #: ids with finished tasks but no record: how many tasks
    to_run: list[Cell]
    trainings: int  #: distinct task trainings that to_run needs and the store does not have
    trainings_alone: int  #: what they would be without sharing
    blocked: dict[str, str]  #: datasets that "all" left out: why, and the command that gets them

    def as_json(self) -> dict[str, Any]:
        """``clmerge plan --json``."""
        return {
            "cells": [{"id": cell.id, **cell.coordinates()} for cell in self.cells],
            "done": self.done,
            "stale": self.stale,
            "failed": self.failed,
            "partial": self.partial,
            "to_run": [cell.id for cell in self.to_run],
            "trainings": self.trainings,
            "trainings_alone": self.trainings_alone,
            "blocked": self.blocked,
        }


def parse_seeds(text: str, where: str = "--seeds") -> list[int]:
    """ "3" to [0, 1, 2]; "0,1,7" and "3-12" list repeats.

    Raises:
        UserError: not a count, list or span of non-negative integers.
    """
    try:
        if "," not in text and "-" not in text:
            seeds = list(range(int(text)))
        else:
            seeds = []
            for part in filter(None, text.split(",")):
                low, dash, high = part.partition("-")
                seeds += range(int(low), int(high) + 1) if dash else [int(low)]
    except ValueError:
        seeds = []
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds) or max(seeds) >= 2**32:
        raise UserError(
            f"{where}: {text!r} is neither a count (3), a list (0,1,7) nor a span (3-12) of distinct repeats"
        )
    return seeds


def all_datasets(data: Path, folders: list[Path]) -> tuple[list[str], dict[str, str]]:
    """Keys of the stream datasets whose data is on this machine, and of the others with the reason."""
    here, blocked = [], {}
    for file in sorted({p.stem: p for f in [*folders, DATASETS] for p in f.glob("*.yaml")}.values()):
        config = load_dataset_config(str(file), folders)
        if config.role == "stream":
            why_not = availability(config, data)
            if why_not is None:
                here.append(config.key)
            else:
                blocked[config.key] = why_not
    return here, blocked


def expand(
    suite: SuiteConfig,
    registry: Registry,
    data: Path,
    folders: list[Path],
    overrides: dict[str, Any] | None = None,
    class_order_seed: int | None = None,
    run_seed: int | None = None,
) -> tuple[list[Cell], dict[str, str]]:
    """Every cell of a suite, each checked, without duplicates; and the datasets that ``all`` left out.

    Raises:
        UserError: an unknown name, a task count that does not fit, a dataset that is named and not there, ...
    """
    protocol = load_protocol(suite.protocol, overrides)
    blocked: dict[str, str] = {}
    names: list[str] = []
    for name in suite.datasets:
        if name == "all":
            here, blocked = all_datasets(data, folders)
            names += here
        else:
            names.append(name)
    cells: dict[str, Cell] = {}
    for name in dict.fromkeys(names):
        dataset = load_dataset_config(name, folders)
        if dataset.role != "stream":
            raise UserError(f"datasets: {name!r} is for pre-training the backbone, not a stream")
        why_not = availability(dataset, data)
        if why_not is not None:
            raise UserError(f"dataset {name!r} is not on this machine: {why_not}")
        for n_tasks in suite.tasks or dataset.tasks[:1]:
            if not 1 <= n_tasks <= dataset.classes:
                raise UserError(
                    f"tasks: {n_tasks} tasks do not fit {name!r}, which has {dataset.classes} classes; "
                    f"use 1 to {dataset.classes}"
                )
            adapted = for_dataset(protocol, dataset.key)
            starts: list[Start | None] = [*suite.start] or [None]
            for spelling in suite.methods:
                for start in starts:
                    method = registry.resolve(spelling, adapted.tuned, start)
                    for repeat in parse_seeds(suite.seeds):
                        order = repeat if class_order_seed is None else class_order_seed
                        run = repeat if run_seed is None else run_seed
                        request = {
                            "dataset": name, "n_tasks": n_tasks, "protocol": suite.protocol,
                            "overrides": overrides or {}, "method": method.variant, "class_order_seed": order,
                            "run_seed": run, "eval_split": suite.eval_split,
                        }  # fmt: skip
                        cell = Cell(dataset, n_tasks, adapted, method, order, run, suite.eval_split, request)
                        cells.setdefault(cell.id, cell)
    if not cells:
        raise UserError("datasets: nothing to run; " + "; ".join(f"{k}: {v}" for k, v in blocked.items()))
    return list(cells.values()), blocked


def cell_of(request: dict[str, Any], registry: Registry, folders: list[Path]) -> Cell:
    """The cell of a request, made again in another process."""
    dataset = load_dataset_config(request["dataset"], folders)
    protocol = for_dataset(load_protocol(request["protocol"], request["overrides"]), dataset.key)
    method = registry.resolve(request["method"], protocol.tuned)
    seeds = request["class_order_seed"], request["run_seed"]
    return Cell(dataset, request["n_tasks"], protocol, method, *seeds, request["eval_split"], request)


def make_plan(
    cells: Sequence[Cell], blocked: dict[str, str], results: Path, store: Store, rerun: Iterable[str] = ()
) -> Plan:
    """What is done, stale, half done or missing, and what running the rest would train.

    Args:
        cells: all that is asked for.
        blocked: passed through.
        results: the results folder.
        store: where trainings are looked up.
        rerun: statuses to run again although there is a record: "stale", "done".

    Raises:
        UserError: a record in the grid is unreadable or was edited.
    """
    plan = Plan(list(cells), [], [], [], {}, [], 0, 0, blocked)
    rerun = set(rerun)
    needed: set[str] = set()
    for cell in cells:
        folder = results / "runs" / cell.id
        record = read_record(folder / "cell.json") if (folder / "cell.json").exists() else None
        if record is not None and record["status"] == "damaged":
            raise UserError(f"{folder / 'cell.json'}: {record['reason']}; delete this file to run the cell again")
        state = "missing"
        if record is not None:
            state = "failed" if record["status"] == "failed" else "done" if record["code"] == cell.code() else "stale"
            {"failed": plan.failed, "done": plan.done, "stale": plan.stale}[state].append(cell.id)
        if state in ("missing", "failed") or state in rerun:
            plan.to_run.append(cell)
            finished = _finished_tasks(folder)
            if finished:
                plan.partial[cell.id] = finished
            todo = [key for t, key in cell.train_keys.items() if t > finished and not store.has("train", key)]
            plan.trainings_alone += len(todo)
            needed |= set(todo)
    plan.trainings = len(needed)
    return plan


def _finished_tasks(folder: Path) -> int:
    try:
        return int(json.loads((folder / "progress.json").read_text())["finished"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def pack(cells: Sequence[Cell], slots: int) -> list[list[Cell]]:
    """Cells into trials (one process each): mates of one trunk together, and enough trials to fill the slots.

    A worker's imports cost seconds, so a trial is a whole stream (all methods of one dataset, T and repeat) where
    there are streams enough; with fewer streams than twice the slots each is split, the costly chains first.
    """
    streams: dict[Any, dict[Any, list[Cell]]] = {}
    for cell in cells:
        stream = (
            cell.dataset.key,
            cell.n_tasks,
            cell.protocol.key,
            cell.class_order_seed,
            cell.run_seed,
            cell.eval_split,
        )
        last = cell.train_keys[cell.trained_tasks[-1]]
        streams.setdefault(stream, {}).setdefault(last, []).append(cell)
    parts = max(1, math.ceil(2 * slots / max(1, len(streams))))
    trials: list[list[Cell]] = []
    for chains in streams.values():
        bins: list[list[Cell]] = [[] for _ in range(min(parts, len(chains)))]
        cost = [0.0] * len(bins)
        for chain in sorted(chains.values(), key=lambda c: -c[0].opt_steps()):
            lightest = cost.index(min(cost))
            bins[lightest] += chain
            cost[lightest] += chain[0].opt_steps() * (1 + 0.1 * len(chain))
        trials += bins
    return sorted(trials, key=lambda trial: -sum(cell.opt_steps() for cell in trial))


# ---- what a person reads before anything runs --------------------------------------------------------------------
def estimate(plan: Plan, results: Path) -> tuple[float | None, float]:
    """(core seconds, bytes) that running the plan takes: seconds from records of the same protocol where there are
    any (None otherwise), bytes as an upper bound.
    """
    spent: dict[str, float] = {}
    per_step: list[float] = []
    for record in read_records(results):
        if record["status"] == "done" and record["totals"]["opt_steps"]:
            told = record["coordinates"]
            cost = record["totals"]["train_s_alone"] + record["totals"]["merge_s"] + record["totals"]["eval_s"]
            spent[f"{told['dataset']} {told['n_tasks']} {told['protocol']} {told['variant']}"] = cost
            if plan.cells and told["protocol"] == plan.cells[0].protocol.key:
                per_step.append(cost / record["totals"]["opt_steps"])
    seconds = 0.0
    for cell in plan.to_run:
        known = spent.get(f"{cell.dataset.key} {cell.n_tasks} {cell.protocol.key} {cell.method.variant}")
        typical = sorted(per_step)[len(per_step) // 2] if per_step else cell.protocol.seconds_per_step
        if known is None and typical is None:
            return None, 0.0
        seconds += known if known is not None else float(typical or 0) * cell.opt_steps()
    share = plan.trainings / plan.trainings_alone if plan.trainings_alone else 1.0
    weights = [weights_file(c.protocol) for c in plan.to_run if c.protocol.backbone.weights]
    model = max((f.stat().st_size for f in weights), default=50_000_000)
    predictions = max((c.dataset.test * c.n_tasks * 4 for c in plan.to_run), default=0)
    return seconds * share, float(plan.trainings * model + len(plan.to_run) * (predictions + 50_000))


def preflight(plan: Plan, results: Path) -> None:
    """Refuse to start what could not be written.

    Raises:
        UserError: the results folder is not writable, or too little space is left on its disk.
    """
    try:
        (results / "runs").mkdir(parents=True, exist_ok=True)
        write_atomic(results / "runs" / ".writable", "")
        (results / "runs" / ".writable").unlink()
    except OSError as error:
        raise UserError(f"--results {results}: cannot write there ({error.strerror}); name another folder") from None
    _, size = estimate(plan, results)
    free = shutil.disk_usage(results).free
    if size + 2**26 > free:
        raise UserError(
            f"--results {results}: {free / 1e9:.2f} GB free, up to {(size + 2**26) / 1e9:.2f} GB needed; "
            "free some space (clmerge cache prune) or name another folder"
        )


def describe(plan: Plan, suite: SuiteConfig, results: Path, processes: int | None) -> str:
    """The plan in a few lines."""
    cells = plan.cells
    datasets = ", ".join(dict.fromkeys(f"{c.dataset.key} T={c.n_tasks}" for c in cells))
    methods = len({c.method.variant for c in cells})
    repeats = len({(c.class_order_seed, c.run_seed) for c in cells})
    lines = [
        f"{len(cells)} cells: {datasets}; {methods} method{'s' * (methods > 1)}, "
        f"{repeats} repeat{'s' * (repeats > 1)}, protocol {cells[0].protocol.variant_of or cells[0].protocol.key}"
        + (", validation split" * (suite.eval_split == "val"))
    ]
    told = {"done": plan.done, "failed before": plan.failed, "begun": plan.partial}
    states = [f"{len(ids)} {name}" for name, ids in told.items() if ids]
    lines.append(f"  {', '.join([*states, f'{len(plan.to_run)} to run'])}")
    if plan.stale:
        again = (
            "run again"
            if {c.id for c in plan.to_run} & set(plan.stale)
            else "kept as they are; --rerun stale runs them again"
        )
        lines.append(f"  {len(plan.stale)} stale (their code has changed since): {again}")
    if plan.to_run:
        seconds, size = estimate(plan, results)
        if plan.trainings:
            work = f"  {plan.trainings} task trainings ({plan.trainings_alone} without sharing)"
        else:
            work = "  nothing is trained: every training is in the cache; only merges and evaluations run"
        if seconds is not None and processes:
            work += f", about {_duration(seconds / processes)} on {processes} process{'es' * (processes > 1)}"
        lines.append(f"{work}, at most {max(1, size / 1e6):,.0f} MB of disk")
    for key, why_not in plan.blocked.items():
        lines.append(f"  not on this machine: {key}: {why_not}")
    return "\n".join(lines)


def _duration(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 90
        else f"{seconds / 60:.0f} min"
        if seconds < 5400
        else f"{seconds / 3600:.1f} h"
    )
