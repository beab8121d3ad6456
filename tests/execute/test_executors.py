"""Executors are found by the name of their file, and each brings every trial to records."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from bench.common.errors import UserError
from bench.common.paths import ROOT
from bench.execute.execute import Execution
from bench.execute.executors import executor_of, kinds
from bench.session import Session

GRID = {
    "datasets": "digits",
    "tasks": 2,
    "seeds": 1,
    "methods": ["linear_probe", "ncm"],
    "protocol_set": {"train.epochs": [1]},
}


def test_every_file_is_a_kind_and_makes_an_executor() -> None:
    assert {"local", "ray", "slurm"} <= set(kinds())
    for kind in kinds():
        executor = executor_of(Execution(Path("/r"), Path("/d"), executor=kind, workers=1), 1)
        assert type(executor).__module__ == f"bench.execute.executors.{kind}"
        assert executor.slots() == 1


def test_jobs_of_a_cluster_leave_the_records_of_a_local_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit", reason="submitit is an extra: pip install 'clmerge[slurm]'")
    monkeypatch.setenv("CLMERGE_SLURM", "cluster=local timeout_min=5")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    rows = {}
    for kind in ("local", "slurm"):
        session = Session(**GRID, results=tmp_path / kind, data=ROOT / "data", executor=kind, workers=1)
        assert session.run().failed == {}
        rows[kind] = [(row["method"], row["a_last"], row["digest"]) for row in session.results()]
        assert not (tmp_path / kind / kind).exists()  # nothing is left of a job that went well
    assert len(rows["local"]) == 2
    assert rows["local"] == rows["slurm"]


def test_without_submitit_one_line_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    session = Session(**GRID, results=tmp_path, data=ROOT / "data", executor="slurm")
    with pytest.raises(UserError, match=r"--executor slurm: submitit is not installed; pip install 'clmerge\[slurm\]'"):
        session.run()


def test_wrong_words_for_a_cluster_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit", reason="submitit is an extra: pip install 'clmerge[slurm]'")
    monkeypatch.setenv("CLMERGE_SLURM", "partition gpu")
    with pytest.raises(UserError, match="CLMERGE_SLURM: 'partition gpu': write name=value"):
        Session(**GRID, results=tmp_path, data=ROOT / "data", executor="slurm").run()


def test_an_unknown_executor_is_one_line(tmp_path: Path) -> None:
    session = Session(**GRID, results=tmp_path, data=ROOT / "data", executor="slrum")
    with pytest.raises(UserError, match="--executor: unknown executor 'slrum'; did you mean 'slurm'"):
        session.run()


def test_an_interruption_ends_the_jobs_of_a_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit", reason="submitit is an extra: pip install 'clmerge[slurm]'")
    from submitit.local.local import LocalJob

    jobs: list[LocalJob[None]] = []

    def interrupted(job: LocalJob[None]) -> None:
        jobs.append(job)
        raise KeyboardInterrupt

    monkeypatch.setattr(LocalJob, "exception", interrupted)
    executor = executor_of(Execution(tmp_path, tmp_path, executor="slurm", workers=1), 1)
    monkeypatch.setenv("CLMERGE_SLURM", "cluster=local timeout_min=5")
    monkeypatch.setattr(sys.modules[type(executor).__module__], "run_trial", time.sleep)
    with pytest.raises(KeyboardInterrupt):
        executor.run([300], tmp_path / "log.txt")  # type: ignore[list-item]
    assert [job.done() for job in jobs] == [True]


def test_without_a_cluster_nothing_runs_on_this_machine_instead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("submitit", reason="submitit is an extra: pip install 'clmerge[slurm]'")
    monkeypatch.delenv("CLMERGE_SLURM", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))  # no srun there
    with pytest.raises(UserError, match=r"--executor slurm: Could not detect .srun."):
        Session(**GRID, results=tmp_path / "results", data=ROOT / "data", executor="slurm").run()
    assert not list((tmp_path / "results").glob("runs/*/cell.json"))
