"""Running trials to records, by whichever executor is asked for, and to be interrupted."""

from __future__ import annotations

import shutil
import signal
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.common.errors import Interrupted
from bench.execute.executors import executor_of
from bench.execute.progress import Display, why_failed
from bench.execute.trial import record_path, stamp
from bench.plan.cell import Cell
from bench.registry import plugin_places


@dataclass(frozen=True)
class Execution:
    """How and where trials are run."""

    results: Path  #: absolute
    data: Path  #: absolute
    plugins: tuple[Path, ...] = ()  #: absolute; their folders are searched for datasets too
    executor: str = "ray"  #: one of :func:`bench.execute.executors.kinds`
    use_cache: bool = True
    gpus_per_run: float | None = None  #: 0 to 1; None: 1 where there are GPUs
    workers: int | None = None  #: processes at once; None: as many as there are cores (or GPUs) for
    quiet: bool = False


@dataclass
class Outcome:
    """What became of the cells."""

    done: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)  #: cell id to a one-line reason

    @property
    def exit_code(self) -> int:
        """Of a command that ran these cells."""
        return 1 if self.failed else 0


def execute(trials: list[list[Cell]], execution: Execution, threads: int) -> Outcome:
    """Run trials to records. A cell that fails or kills its process becomes a failed record; the others go on.

    Args:
        trials: cells that share a process, see :func:`bench.plan.trials.pack`. Their old records, if any, are replaced.
        execution: how and where.
        threads: of one process (a field of the protocol).

    Raises:
        Interrupted: by Ctrl-C, SIGTERM or SIGHUP.
        UserError: the executor cannot run them (Ray did not start, or stopped, ...).
    """
    cells = [cell for trial in trials for cell in trial]
    if not cells:
        return Outcome()
    job = uuid.uuid4().hex
    before = {cell.id: stamp(record_path(execution.results, cell.id)) for cell in cells}
    display = Display(cells, execution.results, job, before, execution.quiet)
    log = execution.results / execution.executor / job / "log.txt"
    try:
        with _terminations_interrupt(), display:
            broken = executor_of(execution, threads).run(_specs(trials, execution, before, job), log)
    except KeyboardInterrupt:
        _remove(log.parent)
        raise Interrupted(len(display.records), len(cells)) from None
    outcome = _outcome(trials, display, broken, log)
    if not outcome.failed:
        _remove(log.parent)
    return outcome


def _specs(
    trials: list[list[Cell]], execution: Execution, before: dict[str, int | None], job: str
) -> list[dict[str, Any]]:
    """What :func:`bench.execute.trial.run_trial` takes, one a trial."""
    common = {
        "results": str(execution.results),
        "data": str(execution.data),
        "plugins": [str(place) for place in plugin_places(execution.plugins)[1:]],
        "use_cache": execution.use_cache,
        "gpu": execution.gpus_per_run != 0,
        "job": job,
    }
    return [
        {"cells": [c.as_json() for c in trial], "before": {c.id: before[c.id] for c in trial}, **common}
        for trial in trials
    ]


def _outcome(trials: list[list[Cell]], display: Display, broken: dict[int, str], log: Path) -> Outcome:
    """What became of every cell; one without a record takes its trial's reason."""
    outcome = Outcome()
    for number, trial in enumerate(trials):
        left = [cell.id for cell in trial if cell.id not in display.records]
        if left:
            reason, where = broken.get(number, "its process ended without a record"), log.with_name(f"{number}.error")
            display.failed(f"{len(left)} runs ({left[0]}, ...)", reason, where if where.exists() else log)
            outcome.failed |= dict.fromkeys(left, reason)
    for cell_id, record in display.records.items():
        why = why_failed(record)
        if why is None:
            outcome.done.append(cell_id)
        else:
            outcome.failed[cell_id] = why
    return outcome


def _remove(job: Path) -> None:
    shutil.rmtree(job, ignore_errors=True)
    with suppress(OSError):  # there is none, or another command's job lies there too
        job.parent.rmdir()


@contextmanager
def _terminations_interrupt() -> Iterator[None]:
    """Let SIGTERM and SIGHUP do what Ctrl-C does, for the length of a block."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    ours = [] if threading.current_thread() is not threading.main_thread() else [signal.SIGTERM, signal.SIGHUP]
    # Where somebody has already decided (nohup, an outer program), it stays so.
    before = {number: signal.signal(number, interrupt) for number in ours if signal.getsignal(number) is signal.SIG_DFL}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
