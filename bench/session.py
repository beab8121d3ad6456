"""A grid from Python: what the commands, a notebook and the benchmarks call.

``Session("smoke", tasks=[2], seeds=3).run()`` runs it, ``.results()`` gives one dict a cell (``pandas.DataFrame`` makes
a table of them); docs/python.md has more.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from bench.common.cache import Store, key_of
from bench.common.errors import UserError
from bench.config.files import load_suite, shown_image
from bench.config.schema import SuiteConfig, check
from bench.execute.execute import Execution, Outcome, execute
from bench.execute.executors import executor_of
from bench.plan.cell import Cell
from bench.plan.forecast import describe, preflight
from bench.plan.grid import expand
from bench.plan.todo import Plan, make_plan, with_data_as_it_is
from bench.plan.trials import pack
from bench.records.record import Standing
from bench.registry import Registry, plugin_places

LISTS = {"datasets", "tasks", "methods", "start", "trainers", "heads", "protocol"}  #: of a suite


class Session:
    """A suite with changes, in a results folder: planned, run, read.

    Args:
        suite: the name of a suite, the path of its YAML, or a checked one.
        results, data: folders.
        plugins: more plugin folders and files.
        executor, workers, gpus_per_run: how and where cells are run.
        use_cache: whether trainings and statistics are shared between cells.
        keep_weights: write every task's weights beside the record.
        rerun: statuses ("stale", "done") to run again although there is a record.
        quiet: print nothing while cells run.
        class_order_seed, run_seed: pin one of the two; repeats then vary the other.
        changes: keys of a suite that stand above its own, such as ``datasets=["digits"]``, ``seeds=3`` (a count) or
            ``seeds=[0, 7]``; ``protocol_set={"lora.rank": [4, 10]}`` is added to the suite's own.

    Raises:
        UserError: a wrong name or value.
    """

    def __init__(
        self,
        suite: str | SuiteConfig = "embedded",
        *,
        results: str | Path = "results",
        data: str | Path = "data",
        plugins: Iterable[str | Path] = (),
        executor: str = "ray",
        workers: int | None = None,
        gpus_per_run: float | None = None,
        use_cache: bool = True,
        keep_weights: bool = False,
        rerun: Iterable[str] = (),
        quiet: bool = True,
        class_order_seed: int | None = None,
        run_seed: int | None = None,
        **changes: Any,
    ) -> None:
        plain = suite if isinstance(suite, SuiteConfig) else load_suite(suite)
        self.suite = check(plain.model_dump() | _as_in_a_suite(plain, changes), SuiteConfig, "Session")
        places = tuple(plugin_places(plugins)[1:])
        records, datasets = (Path(each).expanduser().resolve() for each in (results, data))
        self.execution = Execution(records, datasets, places, executor, use_cache, gpus_per_run, workers, quiet)
        self.keep_weights, self.rerun = keep_weights, tuple(rerun)
        self._pinned: dict[str, Any] = {"class_order_seed": class_order_seed, "run_seed": run_seed}

    # ---- what is asked for -----------------------------------------------------------------------------------------
    @cached_property
    def registry(self) -> Registry:
        """All plugins."""
        return Registry.load(self.execution.plugins)

    @property
    def folders(self) -> list[Path]:
        """Where datasets are looked for beside the shipped ones."""
        return [place for place in self.execution.plugins if place.is_dir()]

    @cached_property
    def grid(self) -> tuple[list[Cell], dict[str, str]]:
        """Every cell that is asked for; and the datasets that ``all`` left out, with the reason."""
        cells, blocked = expand(self.suite, self.registry, self.execution.data, self.folders, **self._pinned)
        for cell in cells if self.keep_weights else ():
            if cell.method.trainer.data == "seen":
                raise UserError(f"--keep-weights: {cell.method.key!r} has no task models to keep; leave it out")
            if cell.method.trainer.heads == "seen":
                raise UserError(
                    f"--keep-weights: {cell.method.key!r} trains the heads of earlier tasks on, and what is kept has "
                    "one head a task; leave it out"
                )
        return [dataclasses.replace(cell, keep_weights=self.keep_weights) for cell in cells], blocked

    def of(self, cells: Iterable[Cell], blocked: dict[str, str] | None = None) -> Session:
        """This session with cells that were made elsewhere, equal ones once."""
        self.grid = list({cell.id: cell for cell in cells}.values()), blocked or {}
        return self

    @property
    def ids(self) -> set[str]:
        """Of all cells."""
        return {cell.id for cell in self.grid[0]}

    # ---- plan, run, results ----------------------------------------------------------------------------------------
    def plan(self, prepare: bool = False) -> Plan:
        """What is there, and what is left to run.

        Args:
            prepare: whether datasets whose files have changed are prepared anew first, as :meth:`run` does: the same
                arrays may come of it.
        """
        cells, blocked = self.grid
        if prepare:
            cells = with_data_as_it_is(cells, self.execution.data)
        store = Store(self.execution.results / "cache", self.execution.use_cache)
        return make_plan(cells, blocked, self.execution.results, self.execution.data, store, self.rerun)

    @cached_property
    def threads(self) -> int:
        """Of one process."""
        return max(cell.protocol.threads for cell in self.grid[0])

    @cached_property
    def processes(self) -> int:
        """How many run at once."""
        return executor_of(self.execution, self.threads).slots()

    def describe(self, plan: Plan) -> str:
        """The plan in a few lines."""
        return describe(plan, self.suite, self.execution.results, self.processes)

    def trials(self, plan: Plan, shard: str | None = None) -> list[list[Cell]]:
        """What is left to run, cut for processes; of ``shard`` "K/N" only the K-th of N parts.

        The whole grid is cut, as small as trainings allow: the same way for every job of an array, whatever is left and
        however many cores its node has. A job's own part is then cut for its own processes.
        """
        if shard is None:
            return pack(plan.to_run, self.processes)
        match = re.fullmatch(r"(\d+)/(\d+)", shard)
        if not match or not 1 <= int(match[1]) <= int(match[2]):
            raise UserError(f"--shard: {shard!r} is not K/N with 1 <= K <= N, for example 2/8")
        parts = int(match[2])
        finest = pack(plan.cells, len(plan.cells))
        ids = {cell.id for trial in finest[int(match[1]) - 1 :: parts] for cell in trial}
        return pack([cell for cell in plan.to_run if cell.id in ids], self.processes)

    def run(self, plan: Plan | None = None, shard: str | None = None) -> Outcome:
        """Run what is left. A cell that fails is in ``Outcome.failed``; the others go on.

        Raises:
            Interrupted: by Ctrl-C and its like; what is finished is kept.
            UserError: nothing was run: too little space, a folder that cannot be written, ...
        """
        plan = plan or self.plan(prepare=True)
        trials = self.trials(plan, shard)
        if not trials:
            return Outcome()
        check_models(cell for trial in trials for cell in trial)
        preflight(plan, self.execution.results, self.execution.data)
        return execute(trials, self.execution, self.threads)

    def results(self, plan: Plan | None = None) -> list[dict[str, Any]]:
        """One row a cell that has a record, with the columns of ``clmerge results``."""
        from bench.records.record import read_records
        from bench.report.rows import rows

        records = [record for record in read_records(self.execution.results) if record["id"] in self.ids]
        return rows(records, standings_after(plan or self.plan()), self.suite.eval_split)


def check_models(cells: Iterable[Cell]) -> None:
    """Build every backbone of the cells once, with random weights: what cannot be adapted is told before anything runs.

    A plan does not, since it would have to wait for torch.

    Raises:
        UserError: which protocol, and what is wrong with its backbone or adapter.
    """
    from bench.model.backbone import check_model

    settings = {
        key_of(cell.protocol.backbone, cell.protocol.adapter, cell.protocol.adapter_section, image): (cell, image)
        for cell in cells
        if cell.trains
        for image in [shown_image(cell.protocol, cell.dataset)]
    }
    for cell, image in settings.values():
        check_model(cell.protocol, image)


def _as_in_a_suite(suite: SuiteConfig, changes: dict[str, Any]) -> dict[str, Any]:
    """Arguments as a suite's YAML would have them: one name is a list of one, a list of repeats is a text."""
    written = dict(changes)
    for name in LISTS & changes.keys():
        written[name] = _listed(changes[name])
    if "seeds" in changes:
        seeds = changes["seeds"]
        written["seeds"] = (
            "".join(f"{seed}," for seed in seeds) if isinstance(seeds, (list, tuple, range)) else str(seeds)
        )
    if isinstance(changes.get("protocol_set"), dict):
        alternatives = {field: _listed(value) for field, value in changes["protocol_set"].items()}
        written["protocol_set"] = suite.protocol_set | alternatives
    return written


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple, range)) else [value]


def standings_after(plan: Plan) -> dict[str, Standing]:
    """How records stand once the plan was run: what was not run again is what it was."""
    run: Sequence[str] = [cell.id for cell in plan.to_run]
    stale = dict.fromkeys(set(plan.stale) - set(run), Standing("stale"))
    return stale | {id_: Standing("outdated", why) for id_, why in plan.outdated.items() if id_ not in run}
