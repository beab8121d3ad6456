"""Scheduling: the same numbers however trials are run, whatever dies on the way; and nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from filelock import FileLock

from bench.common.errors import Interrupted, UserError
from bench.config.schema import SuiteConfig
from bench.execute import ray_process, resources
from bench.execute.execute import Execution, Outcome, execute
from bench.execute.executors import executor_of
from bench.execute.progress import Display
from bench.execute.trial import record_path, run_trial, stamp, starts_allowed
from bench.plan.cell import Cell
from bench.plan.grid import expand
from bench.records.record import read_record, read_records
from bench.registry import Registry

DATA = Path(__file__).parent.parent.parent / "data"
TINY = {"train.epochs": 1, "per_dataset": {}}
PLUGIN = '''
"""Rules that do at the second task what a file beside this one says."""
import os, signal, time
from pathlib import Path
from bench.method import Rule, method, rule

HERE = Path(__file__).parent

@rule("probe")
class Probe(Rule):
    """Serves what was trained."""
    def merge(self, task):
        """Wait, be told to stop, or be killed once."""
        while task.t == 2 and (HERE / "wait").exists():
            time.sleep(0.05)
        for name, number in (("terminate", signal.SIGTERM), ("kill", signal.SIGKILL)):
            if task.t == 2 and (HERE / name).exists():
                (HERE / name).unlink()
                os.kill(os.getpid(), number)
        return task.trained

@rule("raises")
class Raises(Rule):
    """Fails, always."""
    def merge(self, task):
        """Nothing is merged."""
        raise ValueError("on purpose")
'''
DRIVER = """
import json, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job is born deaf to it, and so are we
from bench import Session
from bench.common.errors import Interrupted

results, data, plugins, methods, seeds, tiny = sys.argv[1:]
session = Session(
    protocol="embedded", datasets="digits", tasks=2, methods=methods.split(), seeds=seeds,
    protocol_set=json.loads(tiny), results=results, data=data, plugins=plugins.split(), workers=2, quiet=False,
)
try:
    session.run()
except Interrupted as stop:
    print(stop)
    sys.exit(130)
"""


def cells_of(methods: str, plugins: tuple[Path, ...] = (), seeds: str = "1") -> list[Cell]:
    suite = SuiteConfig(
        key="t", protocol="embedded", datasets=["digits"], tasks=[2], methods=methods.split(), seeds=seeds
    )
    return expand(suite, Registry.load(plugins), DATA, [], TINY)[0]


def locally(results: Path, trials: list[list[Cell]], plugins: tuple[Path, ...] = (), **options: Any) -> Outcome:
    return execute(trials, Execution(results, DATA, plugins, "local", **options), 1)


def numbers(results: Path) -> dict[str, Any]:
    """What must not depend on how cells were run."""
    found = [r for r in read_records(results) if r["status"] == "done"]
    return {r["id"]: [r["counts"], r["counts_taskaware"], r["digest"]] for r in found}


@pytest.fixture
def plugins(tmp_path: Path) -> Path:
    folder = tmp_path / "somewhere" / "plugins"
    folder.mkdir(parents=True)
    (folder / "probe.py").write_text(PLUGIN)
    return folder


class Driver:
    """A command line that runs cells through Ray, with everything that it starts in sight."""

    def __init__(self, results: Path, plugins: Path, methods: str, seeds: str, cwd: Path) -> None:
        self.tag = uuid.uuid4().hex
        arguments = [str(results), str(DATA), str(plugins), methods, seeds, json.dumps(TINY)]
        self.process = subprocess.Popen(
            [sys.executable, "-c", DRIVER, *arguments], cwd=cwd, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, env={**os.environ, "CLMERGE_TEST": self.tag},
        )  # fmt: skip

    def processes(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            try:
                tagged = process.environ().get("CLMERGE_TEST") == self.tag
                if tagged and process.status() != psutil.STATUS_ZOMBIE and process.pid != self.process.pid:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def all_gone_within(self, seconds: float) -> bool:
        return within(seconds, lambda: not self.processes())


@contextmanager
def driver(*arguments: Any) -> Iterator[Driver]:
    running = Driver(*arguments)
    try:
        yield running
    finally:
        running.process.kill()
        running.process.communicate()
        for process in running.processes():
            process.kill()


def within(seconds: float, check: Callable[[], Any]) -> bool:
    until = time.monotonic() + seconds
    while not check():
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True


def merging_second(results: Path, job_differs_from: str = "") -> str:
    """The job under which a cell is in its second task, or nothing."""
    for file in results.glob("runs/*/progress.json"):
        told = json.loads(file.read_text())
        if told["phase"] == "merging" and told["task"] == 2 and told["job"] != job_differs_from:
            return str(told["job"])
    return ""


# ---- with Ray: every process imports torch, so there are as few as show what is to be shown ----------------------------
@pytest.mark.timeout(600)
def test_ray_equals_local_and_outlives_dying_workers(tmp_path: Path, plugins: Path) -> None:
    methods = "finetune probe@previous"
    alone, elsewhere = tmp_path / "alone", tmp_path / "elsewhere"
    elsewhere.mkdir()
    locally(alone, [cells_of(methods, (plugins,))], (plugins,))
    (plugins / "kill").touch()
    with driver(tmp_path / "ray", plugins, f"{methods} raises@pretrained", "1", elsewhere) as running:
        said, noise = running.process.communicate(timeout=500)
        assert running.process.returncode == 0, noise
        assert running.all_gone_within(1)
    assert numbers(tmp_path / "ray") == numbers(alone)
    assert len(numbers(alone)) == 2
    assert not (plugins / "kill").exists()
    (failed,) = [r for r in read_records(tmp_path / "ray") if r["status"] == "failed"]
    assert failed["coordinates"]["method"] == "raises@pretrained"
    assert noise == ""  # nothing of Ray's
    assert len(said.splitlines()) == 3
    assert all(line.startswith("[") for line in said.splitlines())
    assert "A_last" in said
    (told,) = [line for line in said.splitlines() if "FAILED" in line]
    assert failed["id"] in told
    assert "ValueError: on purpose" in told
    assert not list(elsewhere.iterdir())
    assert len(list((tmp_path / "ray" / "ray").glob("*/log.txt"))) == 1  # kept, since a cell failed


@pytest.mark.timeout(600)
def test_interrupted_and_killed_runs_leave_nothing_and_go_on(tmp_path: Path, plugins: Path) -> None:
    methods, seeds, results = "probe@previous", "1", tmp_path / "results"
    trials = [[cell] for cell in cells_of(methods, (plugins,), seeds)]
    locally(tmp_path / "whole", trials, (plugins,))
    (plugins / "wait").touch()

    with driver(results, plugins, methods, seeds, tmp_path) as running:
        assert within(240, lambda: merging_second(results))
        job, began = merging_second(results), time.monotonic()
        running.process.send_signal(signal.SIGINT)
        said, noise = running.process.communicate(timeout=20)
        assert running.process.returncode == 130, noise
        assert said == "interrupted with 0 of 1 runs finished\n"
        assert running.all_gone_within(0.5)
        assert time.monotonic() - began < 20

    with driver(results, plugins, methods, seeds, tmp_path) as running:
        assert within(240, lambda: merging_second(results, job_differs_from=job))
        running.process.kill()
        assert running.all_gone_within(10)

    assert not list(results.glob("runs/*/cell.json"))
    (left,) = (results / "ray").iterdir()  # of the killed one: the interrupted one tidied up
    assert left.name == uuid.UUID(left.name).hex
    (plugins / "wait").unlink()
    locally(results, trials, (plugins,))
    assert numbers(results) == numbers(tmp_path / "whole")
    assert len(numbers(results)) == 1


def test_ray_that_does_not_start_costs_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "__init__.py").write_text("raise RuntimeError('no room for Ray')")
    monkeypatch.setitem(ray_process._RAY_ENVIRONMENT, "PYTHONPATH", str(tmp_path))
    with pytest.raises(UserError, match=r"no room for Ray.*log.txt.*--executor local"):
        execute([cells_of("average")], Execution(tmp_path / "results", DATA), 1)


def test_trial_that_cannot_run_is_told_with_its_reason(tmp_path: Path, plugins: Path) -> None:
    """In a worker: by a file, which the command line's side reads."""
    (cell,) = cells_of("probe@previous", (plugins,))
    spec = trial_of([cell], tmp_path, [str(plugins / "gone.py")])
    (tmp_path / "0.json").write_text(json.dumps(spec))
    work = ray_process._trainable(tmp_path, 1)
    work({"trial": 0})
    assert "no plugin folder or file" in (tmp_path / "0.error").read_text().splitlines()[-1]
    for _ in range(3):
        work({"trial": 0})
    assert "died again and again" in (tmp_path / "0.error").read_text()


@pytest.mark.parametrize("alive", [False, True])
def test_next_command_cleans_up_after_a_killed_one(tmp_path: Path, alive: bool) -> None:
    folder, temporary = tmp_path / "ray" / uuid.uuid4().hex, tmp_path / "temporary"
    folder.mkdir(parents=True)
    temporary.mkdir()
    (folder / "job.json").write_text(json.dumps({"host": socket.gethostname(), "temporary": str(temporary)}))
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    stray = subprocess.Popen(command, env={**os.environ, ray_process.MARK: folder.name})
    other = subprocess.Popen(command, env={**os.environ, ray_process.MARK: "another"})
    owner = FileLock(folder / ".lock")
    try:
        if alive:
            owner.acquire()
        ray_process.clean_up_after_killed(tmp_path / "ray")
        assert (stray.poll() is None) is alive
        assert folder.exists() is alive
        assert temporary.exists() is alive
        assert other.poll() is None
    finally:
        owner.release()
        for process in (stray, other):
            process.kill()
            process.wait()


# ---- without Ray -------------------------------------------------------------------------------------------------
def trial_of(cells: list[Cell], results: Path, plugins: list[str]) -> dict[str, Any]:
    before = {cell.id: stamp(record_path(results, cell.id)) for cell in cells}
    return {
        "cells": [cell.as_json() for cell in cells], "before": before, "results": str(results), "data": str(DATA),
        "plugins": plugins, "use_cache": True, "gpu": False, "job": "job",
    }  # fmt: skip


def test_termination_is_an_interruption(tmp_path: Path, plugins: Path) -> None:
    trials = [cells_of("finetune probe@previous", (plugins,))]
    locally(tmp_path / "whole", trials, (plugins,))
    (plugins / "terminate").touch()
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted) as stop:
        locally(tmp_path / "results", trials, (plugins,))
    assert (stop.value.finished, stop.value.total) == (1, 2)
    assert signal.getsignal(signal.SIGTERM) is before
    outcome = locally(tmp_path / "results", [[trials[0][1]]], (plugins,))
    assert outcome.done == [trials[0][1].id]
    assert numbers(tmp_path / "results") == numbers(tmp_path / "whole")


def test_a_cell_in_other_hands_is_left_for_the_end_and_not_redone(tmp_path: Path) -> None:
    locked, free = cells_of("average finetune")
    spec = trial_of([locked, free], tmp_path, [])
    locally(tmp_path / "other", [[locked]])
    folder = record_path(tmp_path, locked.id).parent
    folder.mkdir(parents=True)
    with FileLock(folder / ".lock"):
        worker = threading.Thread(target=run_trial, args=(spec,))
        worker.start()
        assert within(60, record_path(tmp_path, free.id).exists)
        assert worker.is_alive()
        theirs = (tmp_path / "other" / "runs" / locked.id / "cell.json").read_text()
        (folder / "cell.json").write_text(theirs)
    worker.join(60)
    assert (folder / "cell.json").read_text() == theirs


def test_a_record_that_was_there_before_is_replaced_once(tmp_path: Path) -> None:
    (cell,) = cells_of("average")
    locally(tmp_path, [[cell]])
    path = record_path(tmp_path, cell.id)
    (path.parent / ".pred.npz.0.tmp").touch()  # of a killed process
    spec, first = trial_of([cell], tmp_path, []), stamp(path)
    run_trial(spec)
    second = stamp(path)
    run_trial(spec)
    assert first != second == stamp(path)
    assert sorted(p.name for p in path.parent.iterdir()) == [".lock", "cell.json", "pred.npz"]


def test_starts_are_bounded_by_the_cells_begun(tmp_path: Path) -> None:
    one, two = cells_of("average finetune")
    spec = trial_of([one, two], tmp_path, [])
    assert starts_allowed(spec) == 3
    for cell in (one, two):
        folder = record_path(tmp_path, cell.id).parent
        folder.mkdir(parents=True)
        (folder / "progress.json").write_text(json.dumps({"job": "job"}))
    assert starts_allowed(spec) == 7
    assert starts_allowed({**spec, "job": "another"}) == 3
    record_path(tmp_path, one.id).write_text("{}")
    assert starts_allowed({**spec, "job": "another"}) == 5


def test_nothing_to_do_starts_nothing(tmp_path: Path) -> None:
    assert execute([], Execution(tmp_path / "results", DATA), 1) == Outcome()
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("cores", "gpus", "threads", "options", "expected"),
    [
        (8, 0, 1, {}, 8),
        (8, 0, 3, {}, 2),
        (2, 0, 4, {}, 1),
        (8, 0, 1, {"workers": 20}, 20),
        (16, 4, 1, {}, 4),
        (16, 2, 1, {"gpus_per_run": 0.2}, 10),
        (16, 2, 1, {"gpus_per_run": 0.3}, 6),
        (16, 2, 1, {"gpus_per_run": 0.5, "workers": 3}, 3),
        (16, 2, 1, {"workers": 9}, 2),
        (16, 2, 4, {"gpus_per_run": 0}, 4),
        (16, 2, 1, {"executor": "local"}, 1),
    ],
)
def test_slots(
    monkeypatch: pytest.MonkeyPatch, cores: int, gpus: int, threads: int, options: dict[str, Any], expected: int
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(resources, "_cores", lambda: cores)
    monkeypatch.setattr(resources, "count_gpus", lambda: gpus)
    assert executor_of(Execution(Path("/r"), DATA, **options), threads).slots() == expected
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    monkeypatch.setattr(resources, "_cluster", lambda: (cores, gpus))
    assert executor_of(Execution(Path("/r"), DATA, **options), threads).slots() == expected


@pytest.mark.parametrize(
    "options", [{"workers": 0}, {"gpus_per_run": 1.5}, {"gpus_per_run": -1}, {"gpus_per_run": 0.5}]
)
def test_impossible_resources_are_refused(monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]) -> None:
    monkeypatch.setattr(resources, "count_gpus", lambda: 0)
    with pytest.raises(UserError):
        executor_of(Execution(Path("/r"), DATA, **options), 1).slots()


# ---- the display -------------------------------------------------------------------------------------------------
def write_progress(results: Path, cell: Cell, **told: Any) -> None:
    folder = record_path(results, cell.id).parent
    folder.mkdir(parents=True, exist_ok=True)
    known = {"job": "job", "finished": 1, "task": 2, "phase": "training", "attempts": 1}
    (folder / "progress.json").write_text(json.dumps(known | told))


def test_display_in_a_pipe_prints_a_line_a_cell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = cells_of("average finetune")
    with Display([good, bad], tmp_path, "job", {good.id: None, bad.id: None}) as display:
        write_progress(tmp_path, good)
        display.look()
        assert display.records == {}
        locally(tmp_path, [[good]], quiet=True)
        failed = {**read_record(record_path(tmp_path, good.id)), "status": "failed", "id": bad.id}
        failed["error"] = {"type": "ValueError", "message": "first [bold]line\nsecond line", "where": "", "attempts": 1}
        path = record_path(tmp_path, bad.id)
        path.parent.mkdir()
        path.write_text(json.dumps(failed))
        display.look()
    first, second = capsys.readouterr().out.splitlines()
    accuracy = sum(c for c, _ in display.records[good.id]["counts"][-1]) / 5.44  # 544 test images
    assert first.startswith(f"[1/2] digits T=2 average c0 r0  A_last {accuracy:.1f}  ")
    assert second == f"[2/2] {bad.id}  FAILED: ValueError: first [bold]line; see {path}"


def test_display_on_a_terminal_shows_running_cells(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"TTY_COMPATIBLE": "1", "TERM": "xterm", "COLUMNS": "100"}.items():
        monkeypatch.setenv(name, value)
    one, two = cells_of("average finetune")
    write_progress(tmp_path, two, job="an older one", phase="evaluating")
    with Display([one, two], tmp_path, "job", {one.id: None, two.id: None}) as display:
        write_progress(tmp_path, one, attempts=2)
        display.look()
        time.sleep(0.5)
    told = capsys.readouterr().out
    assert "digits T=2 average c0 r0   task 2/2 training (start 2)" in told
    assert "evaluating" not in told
    assert "0/2 runs" in told
    assert "1/4" in told


def test_quiet_display_prints_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (cell,) = cells_of("average")
    assert locally(tmp_path, [[cell]], quiet=True).done == [cell.id]
    assert capsys.readouterr().out == ""
