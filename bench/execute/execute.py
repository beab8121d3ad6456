"""Running trials: through Ray Tune or in this process, several at once where there is room, and to be interrupted."""

from __future__ import annotations

import shutil
import signal
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from bench.common.errors import Interrupted, UserError
from bench.execute.progress import Display, why_failed
from bench.execute.ray_process import Conductor, clean_up_after_killed
from bench.execute.resources import cluster_address, count_gpus, slots
from bench.execute.trial import record_path, run_trial, stamp
from bench.plan.cell import Cell
from bench.registry import plugin_places


@dataclass(frozen=True)
class Execution:
    """How and where trials are run."""

    results: Path  #: absolute
    data: Path  #: absolute
    plugins: tuple[Path, ...] = ()  #: absolute; their folders are searched for datasets too
    executor: Literal["ray", "local"] = "ray"
    use_cache: bool = True
    gpus_per_run: float | None = None  #: 0 to 1; None: 1 where there are GPUs
    workers: int | None = None  #: processes at once; None: as many as there are cores (or GPUs) for
    quiet: bool = False


@dataclass
class Outcome:
    """What became of the cells."""

    done: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)  #: cell id to a one-line reason


def execute(trials: list[list[Cell]], execution: Execution, threads: int) -> Outcome:
    """Run trials to records. A cell that fails or kills its process becomes a failed record; the others go on.

    Args:
        trials: cells that share a process, see :func:`bench.plan.trials.pack`. Their old records, if any, are replaced.
        execution: how and where.
        threads: of one process (a field of the protocol).

    Raises:
        Interrupted: by Ctrl-C, SIGTERM or SIGHUP.
        UserError: see :func:`slots`; or Ray did not start, or stopped.
    """
    cells = [cell for trial in trials for cell in trial]
    if not cells:
        return Outcome()
    job = uuid.uuid4().hex
    before = {cell.id: stamp(record_path(execution.results, cell.id)) for cell in cells}
    common = {
        "results": str(execution.results),
        "data": str(execution.data),
        "plugins": [str(place) for place in plugin_places(execution.plugins)[1:]],
        "use_cache": execution.use_cache,
        "gpu": execution.gpus_per_run != 0,
        "job": job,
    }
    specs = [
        {"cells": [c.as_json() for c in trial], "before": {c.id: before[c.id] for c in trial}, **common}
        for trial in trials
    ]
    display = Display(cells, execution.results, job, before, execution.quiet)
    broken: dict[int, str] = {}
    log = execution.results / "ray" / job / "log.txt"
    try:
        with _terminations_interrupt(), display:
            if execution.executor == "local":
                for spec in specs:
                    run_trial(spec)
            else:
                broken = _run_on_ray(specs, execution, threads, job)
    except KeyboardInterrupt:
        _remove(log.parent)
        raise Interrupted(len(display.records), len(cells)) from None

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
    if not outcome.failed:
        _remove(log.parent)
    return outcome


def _remove(job: Path) -> None:
    shutil.rmtree(job, ignore_errors=True)
    with suppress(OSError):  # there is none, or another command's job lies there too
        job.parent.rmdir()


def _run_on_ray(specs: list[dict[str, Any]], execution: Execution, threads: int, job: str) -> dict[int, str]:
    """Returns what went wrong outside of any cell, by trial."""
    jobs = execution.results / "ray"
    clean_up_after_killed(jobs)
    settings = {
        "own": None if cluster_address() else {"cpus": slots(execution, threads), "gpus": count_gpus()},
        "workers": execution.workers,
        "gpus_per_run": execution.gpus_per_run,
        "threads": threads,
    }
    with Conductor(jobs / job, settings, specs) as conductor:
        conductor.process.wait()
    if not conductor.finished():
        lines = conductor.log.read_text(errors="replace").strip().splitlines() or ["no message"]
        raise UserError(
            f"Ray stopped before all was run: {lines[-1]} (log: {conductor.log}); what is finished is kept, "
            "start again or use --executor local"
        )
    return conductor.errors()


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
