"""What a person sees of running cells: fed by the files they write, so it is the same however they are run."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from bench.execute.trial import progress_of, record_path, stamp
from bench.plan.cell import Cell
from bench.records import metrics
from bench.records.record import Record, read_record

PAUSE_S = 0.5


class Display:
    """A context manager that follows cells until it is left.

    On a terminal: a bar over the tasks of all cells, and one line per running cell. Elsewhere (a pipe, CI): one plain
    line per finished cell. On both, failed cells are told at once. ``quiet`` prints nothing.

    Attributes:
        records: what finished so far, by cell id; complete once the block is left.
    """

    def __init__(
        self, cells: list[Cell], results: Path, job: str, before: dict[str, int | None], quiet: bool = False
    ) -> None:
        self.records: dict[str, Record] = {}
        self._results, self._job, self._before = results, job, before
        self._waiting = {cell.id: cell for cell in cells}
        self._cells = len(cells)
        self._tasks_done = dict.fromkeys(self._waiting, 0)
        self._console = Console(quiet=quiet, soft_wrap=True, highlight=False, markup=False)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        # Tasks may take minutes: the speed is estimated over an hour.
        self._total = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("tasks"),
            TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), console=self._console,
            speed_estimate_period=3600,
        )  # fmt: skip
        self._running = Progress(TextColumn("  {task.description}"), console=self._console)
        self._lines: dict[str, TaskID] = {}
        self._bar = self._total.add_task("", total=sum(cell.n_tasks for cell in cells))
        # The bar stands above the running cells: where they are more than the screen has lines, those are cut.
        live = Live(Group(self._total, self._running), console=self._console, refresh_per_second=4, transient=True)
        self._live = live if self._console.is_terminal and not quiet else None

    def __enter__(self) -> Display:
        """Begin to follow."""
        self.look()
        self._total.reset(self._bar, completed=sum(self._tasks_done.values()))  # earlier runs' tasks took no time now
        if self._live:
            self._live.start()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Look a last time, and give the screen back."""
        self._stop.set()
        self._thread.join()
        self.look()
        if self._live:
            self._live.stop()

    def _follow(self) -> None:
        while not self._stop.wait(PAUSE_S):
            self.look()

    def look(self) -> None:
        """Read the files once and show what is new."""
        for cell in list(self._waiting.values()):
            path = record_path(self._results, cell.id)
            if stamp(path) not in (self._before[cell.id], None):
                self._finish(cell, read_record(path))
            else:
                self._show(cell, progress_of(self._results, cell.id, self._job))
        starting = "" if self.records or self._lines else ", starting"
        description = f"{len(self.records)}/{self._cells} runs{starting}"
        self._total.update(self._bar, description=description, completed=sum(self._tasks_done.values()))

    def _show(self, cell: Cell, told: dict[str, Any] | None) -> None:
        if told is None:
            return
        self._tasks_done[cell.id] = told["finished"]
        again = "" if told["attempts"] == 1 else f" (start {told['attempts']})"
        line = f"{name(cell)}   task {told['task']}/{cell.n_tasks} {told['phase']}{again}"
        if cell.id not in self._lines:
            self._lines[cell.id] = self._running.add_task(line)
        self._running.update(self._lines[cell.id], description=line)

    def _finish(self, cell: Cell, record: Record) -> None:
        del self._waiting[cell.id]
        self.records[cell.id] = record
        self._tasks_done[cell.id] = cell.n_tasks
        if cell.id in self._lines:
            self._running.remove_task(self._lines.pop(cell.id))
        count = f"[{len(self.records)}/{self._cells}]"
        reason = why_failed(record)
        if reason is not None:
            self.failed(f"{count} {cell.id}", reason, record_path(self._results, cell.id))
        elif not self._live:
            accuracy = metrics.a_last(record["counts"])
            self._console.print(f"{count} {name(cell)}  A_last {accuracy:.1f}  {record['totals']['wall_s']:.1f} s")

    def failed(self, what: str, reason: str, where: Path) -> None:
        """Tell of a failure, in one line."""
        self._console.print(f"{what}  FAILED: {reason}; see {where}", style="red")


def name(cell: Cell) -> str:
    """A cell in a line's length."""
    return f"{cell.dataset.key} T={cell.n_tasks} {cell.method.key} c{cell.class_order_seed} r{cell.run_seed}"


def why_failed(record: Record) -> str | None:
    """The reason in one line; None for a cell that is done."""
    if record["status"] == "done":
        return None
    if record["status"] == "damaged":
        return str(record["reason"])
    error = record["error"]
    return f"{error['type']}: {(error['message'].splitlines() or [''])[0]}"
