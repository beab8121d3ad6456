"""What of a grid is there already, what running the rest takes, and how it is cut into trials. Torch-free."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.config import SuiteConfig
from bench.data.dataset import data_changed, load_dataset, prepared_folder, stored
from bench.errors import UserError
from bench.identity import Cell
from bench.presets import weights_file
from bench.record import read_record, read_records
from bench.standing import standing
from bench.store import Store, write_atomic


@dataclass
class Plan:
    """Everything that is asked for, and what of it is there already."""

    cells: list[Cell]
    done: list[str]  #: ids with a record of the current code
    stale: list[str]  #: ids with a record of other code
    outdated: dict[str, str]  #: ids of records that are not what their request asks for today, with the reason
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
            "outdated": self.outdated,
            "failed": self.failed,
            "partial": self.partial,
            "to_run": [cell.id for cell in self.to_run],
            "trainings": self.trainings,
            "trainings_alone": self.trainings_alone,
            "blocked": self.blocked,
        }


def make_plan(
    cells: Sequence[Cell], blocked: dict[str, str], results: Path, data: Path, store: Store, rerun: Iterable[str] = ()
) -> Plan:
    """What is done, stale, half done or missing, and what running the rest would train.

    Args:
        cells: all that is asked for.
        blocked: passed through.
        results: the results folder.
        data: the folder of datasets.
        store: where trainings are looked up.
        rerun: statuses to run again although there is a record: "stale", "done".

    Raises:
        UserError: a record in the grid is unreadable or was edited.
    """
    plan = Plan(list(cells), [], [], _orphans(cells, results), [], {}, [], 0, 0, blocked)
    rerun = set(rerun)
    needed: set[str] = set()
    for cell in cells:
        folder = results / "runs" / cell.id
        record = read_record(folder / "cell.json") if (folder / "cell.json").exists() else None
        if record is not None and record["status"] == "damaged":
            raise UserError(f"{folder / 'cell.json'}: {record['reason']}; delete this file to run the cell again")
        state = "missing"
        if record is not None:
            state, why = ("failed", "") if record["status"] == "failed" else standing(record, cell, data)
            if cell.request.get("keep_weights") and not (folder / "weights" / "replay.yaml").exists():
                state = "missing"  # its numbers are there, the weights that are asked for are not
            elif state == "outdated":
                plan.outdated[cell.id] = why
            else:
                {"failed": plan.failed, "done": plan.done, "stale": plan.stale}[state].append(cell.id)
        if state in ("missing", "failed", "outdated") or state in rerun:
            plan.to_run.append(cell)
            finished = _finished_tasks(folder, cell)
            if finished:
                plan.partial[cell.id] = finished
            todo = [key for t, key in cell.train_keys.items() if t > finished and not store.has("train", key)]
            plan.trainings_alone += len(todo)
            needed |= set(todo)
    plan.trainings = len(needed)
    return plan


def with_data_as_it_is(cells: Sequence[Cell], data: Path) -> list[Cell]:
    """The cells, datasets whose files have changed since they were prepared being prepared anew: the same arrays may
    come of it, and then nothing is outdated.
    """
    digests: dict[str, str] = {}
    fresh = []
    for cell in cells:
        image = cell.protocol.image
        key = prepared_folder(cell.dataset, data, image).name
        if key not in digests and cell.data_digest is None and data_changed(cell.dataset, data, image):
            digests[key] = load_dataset(cell.dataset, data, image).digest
        fresh.append(dataclasses.replace(cell, data_digest=digests.get(key, cell.data_digest)))
    return fresh


def _orphans(cells: Sequence[Cell], results: Path) -> dict[str, str]:
    """Records that were made for the same place in the grid under another configuration, with the reason."""
    asked = {cell.id for cell in cells}
    # A name is the place in words and a hash of the configuration: another hash behind the same words.
    folders: dict[str, list[Path]] = {}
    runs = results / "runs"
    for folder in runs.iterdir() if runs.is_dir() else []:
        folders.setdefault(folder.name[:-10], []).append(folder)
    found = {}
    for cell in cells:
        for folder in folders.get(cell.id[:-10], []):
            if folder.name in asked or not (folder / "cell.json").exists():
                continue
            record = read_record(folder / "cell.json")
            if record["status"] == "done" and record["coordinates"] == cell.coordinates():
                found[record["id"]] = standing(record, cell, results).why
    return found


def _finished_tasks(folder: Path, cell: Cell) -> int:
    try:
        told = json.loads((folder / "progress.json").read_text())
        return int(told["finished"]) if told["code"] == cell.code() else 0
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
            cell.protocol.variant_of or cell.protocol.key,  # two heads of one protocol share their trainings
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
    per_step: dict[str, list[float]] = {}  # by protocol, whatever was set by hand
    for record in read_records(results):
        if record["status"] == "done" and (record.get("totals") or {}).get("opt_steps"):
            told = record["coordinates"]
            cost = record["totals"]["train_s_alone"] + record["totals"]["merge_s"] + record["totals"]["eval_s"]
            spent[f"{told['dataset']} {told['n_tasks']} {told['protocol']} {told['variant']}"] = cost
            per_step.setdefault(told["protocol"].partition("[")[0], []).append(cost / record["totals"]["opt_steps"])
    seconds = 0.0
    for cell in plan.to_run:
        known = spent.get(f"{cell.dataset.key} {cell.n_tasks} {cell.protocol.key} {cell.method.variant}")
        measured = sorted(per_step.get(cell.protocol.variant_of or cell.protocol.key, []))
        typical = measured[len(measured) // 2] if measured else cell.protocol.seconds_per_step
        if known is None and typical is None:
            return None, 0.0
        seconds += known if known is not None else float(typical or 0) * cell.opt_steps()
    share = plan.trainings / plan.trainings_alone if plan.trainings_alone else 1.0
    weights = {weights_file(c.protocol) for c in plan.to_run if c.protocol.backbone.weights}
    model = max((f.stat().st_size for f in weights), default=50_000_000)
    predictions = max((c.dataset.test * c.n_tasks * 4 for c in plan.to_run), default=0)
    return seconds * share, float(plan.trainings * model + len(plan.to_run) * (predictions + 50_000))


def to_prepare(plan: Plan, data: Path) -> dict[str, int]:
    """Bytes of pixels, by prepared folder, that preparing what is not prepared yet will write."""
    sizes: dict[str, int] = {}
    for cell in plan.to_run:
        folder = prepared_folder(cell.dataset, data, cell.protocol.image)
        if not folder.exists():
            side, channels = stored(cell.dataset, cell.protocol.image).side, cell.dataset.image.channels
            sizes[folder.name] = (cell.dataset.train + cell.dataset.test) * channels * side**2
    return sizes


def preflight(plan: Plan, results: Path, data: Path) -> None:
    """Refuse to start what could not be written.

    Raises:
        UserError: the results folder is not writable, or too little space is left on its disk or on that of the data.
    """
    try:
        (results / "runs").mkdir(parents=True, exist_ok=True)
        write_atomic(results / "runs" / ".writable", "")
        (results / "runs" / ".writable").unlink()
    except OSError as error:
        raise UserError(f"--results {results}: cannot write there ({error.strerror}); name another folder") from None
    _, size = estimate(plan, results)
    pixels = to_prepare(plan, data)
    place = next(folder for folder in (data, *data.parents) if folder.exists())
    if place.stat().st_dev == results.stat().st_dev:
        size += sum(pixels.values())
    elif pixels and sum(pixels.values()) + 2**26 > shutil.disk_usage(place).free:
        raise UserError(
            f"--data {data}: {shutil.disk_usage(place).free / 1e9:.2f} GB free, {sum(pixels.values()) / 1e9:.2f} GB "
            f"needed to prepare {', '.join(pixels)}; free some space or name another folder"
        )
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
    methods = len({c.method.key for c in cells})
    repeats = len({(c.class_order_seed, c.run_seed) for c in cells})
    protocols = list(dict.fromkeys(c.protocol.key for c in cells))
    more = f", ... ({len(protocols)} in all)" if len(protocols) > 4 else ""
    lines = [
        f"{len(cells)} cell{'s' * (len(cells) > 1)}: {datasets}; {methods} method{'s' * (methods > 1)}, "
        f"{repeats} repeat{'s' * (repeats > 1)}, "
        f"protocol{'s' * (len(protocols) > 1)} {', '.join(protocols[:4])}{more}"
        + {"val": ", validation split", "test_heldout": ", test_heldout split"}.get(suite.eval_split, "")
    ]
    told = {"done": plan.done, "failed before": plan.failed, "begun": plan.partial}
    states = [f"{len(ids)} {name}" for name, ids in told.items() if ids]
    lines.append(f"  {', '.join([*states, f'{len(plan.to_run)} to run'])}")
    if plan.outdated:
        lines.append(f"  {len(plan.outdated)} outdated, not counted:")
        lines += [f"    {cell_id}: {why}" for cell_id, why in list(plan.outdated.items())[:5]]
        lines += ["    ..."] * (len(plan.outdated) > 5)
    if plan.stale:
        again = (
            "run again"
            if {c.id for c in plan.to_run} & set(plan.stale)
            else "kept as they are; --rerun stale runs them again"
        )
        lines.append(f"  {len(plan.stale)} stale (their code has changed since): {again}")
        lines += [f"    {cell_id}" for cell_id in plan.stale[:5]] + ["    ..."] * (len(plan.stale) > 5)
    if plan.to_run:
        seconds, size = estimate(plan, results)
        if plan.trainings:
            work = f"  {plan.trainings} task trainings ({plan.trainings_alone} without sharing)"
        else:
            work = "  nothing is trained: every training is in the cache; only merges and evaluations run"
        if seconds is not None and processes:
            work += f", about {_duration(seconds / processes)} on {processes} process{'es' * (processes > 1)}"
        lines.append(f"{work}, at most {max(1, size / 1e6):,.0f} MB of disk")
    for cell in {(c.dataset.key, c.n_tasks, c.protocol.train): c for c in cells}.values():
        steps, warmup = cell.opt_steps() / len(cell.trained_tasks), cell.protocol.train.warmup_steps
        if warmup != "auto" and warmup > steps / 2:
            lines.append(
                f"  warning: {cell.dataset.key} T={cell.n_tasks}, {cell.protocol.key}: {warmup} warm-up steps are "
                f"more than half of the {steps:.0f} steps of a task; lower train.warmup_steps"
            )
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
