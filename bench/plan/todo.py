"""Which cells of a grid are done, and which are left."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.common.cache import Store
from bench.common.errors import UserError
from bench.data.dataset import data_changed, load_dataset, prepared_folder
from bench.plan.cell import Cell
from bench.plan.standing import standing
from bench.records.record import read_record


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
    plan = Plan(list(cells), [], [], _orphans(cells, results, data), [], {}, [], 0, 0, blocked)
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
            if cell.keep_weights and not (folder / "weights" / "replay.yaml").exists():
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


def _orphans(cells: Sequence[Cell], results: Path, data: Path) -> dict[str, str]:
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
                found[record["id"]] = standing(record, cell, data).why
    return found


def _finished_tasks(folder: Path, cell: Cell) -> int:
    try:
        told = json.loads((folder / "progress.json").read_text())
        return int(told["finished"]) if told["code"] == cell.code() else 0
    except (OSError, ValueError, KeyError, TypeError):
        return 0
