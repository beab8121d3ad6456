"""A grid from Python does what the command does."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import bench
from bench import Session
from bench.cli import cli
from bench.common.errors import UserError
from bench.common.paths import ROOT
from bench.config.schema import SuiteConfig
from bench.plan.grid import parse_seeds

DATA = ROOT / "data"
GRID = {"datasets": ["digits"], "tasks": [2], "methods": ["linear_probe", "ncm"], "seeds": 2, "executor": "local"}
WORDS = [
    "--datasets", "digits", "--tasks", "2", "--methods", "linear_probe ncm", "--data", str(DATA), "--seeds",
]  # fmt: skip

pytestmark = pytest.mark.run


def test_plan_run_and_results_are_those_of_the_command(tmp_path: Path) -> None:
    session = Session(**GRID, results=tmp_path / "python", data=DATA)
    assert len(session.plan().to_run) == 4
    assert session.results() == []
    outcome = session.run()
    assert (len(outcome.done), outcome.failed) == (4, {})
    assert session.plan().to_run == []
    done = CliRunner().invoke(cli, ["run", "--executor", "local", "--results", str(tmp_path / "command"), *WORDS, "2"])
    assert done.exit_code == 0, done.output
    table = CliRunner().invoke(
        cli, ["results", "--csv", "-", "--results", str(tmp_path / "command"), "--data", str(DATA)]
    )
    rows = list(csv.DictReader(io.StringIO(table.stdout)))
    assert [row["digest"] for row in rows] == [row["digest"] for row in session.results()]
    assert [float(row["a_last"]) for row in rows] == [row["a_last"] for row in session.results()]


def test_a_mistake_is_the_commands_own_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown method 'pn'; did you mean 'pm'"):
        Session(datasets="digits", methods="pn", results=tmp_path, data=DATA).plan()
    with pytest.raises(UserError, match="Session: unknown key 'dataset'; did you mean 'datasets'"):
        Session(dataset="digits")


def test_arguments_mean_what_they_mean_on_the_command_line(tmp_path: Path) -> None:
    def asked(**changes: Any) -> SuiteConfig:
        return Session(plain, **changes, results=tmp_path, data=DATA).suite

    plain = SuiteConfig(key="t", datasets=["digits"], methods=["pm"], protocol_set={"lora.rank": [4, 10]})
    assert asked() == plain
    assert (asked(tasks=5).tasks, asked(tasks=(5, 10)).tasks) == ([5], [5, 10])
    assert parse_seeds(asked(seeds=3).seeds) == [0, 1, 2]
    assert parse_seeds(asked(seeds=[7]).seeds) == [7]
    assert parse_seeds(asked(seeds=range(3, 5)).seeds) == [3, 4]
    both = asked(protocol_set={"train.epochs": 1})
    assert both.alternatives() == [{"lora.rank": 4, "train.epochs": 1}, {"lora.rank": 10, "train.epochs": 1}]


def test_importing_bench_stays_light() -> None:
    assert bench.Session is Session
    with pytest.raises(AttributeError, match="has no attribute 'Sesion'"):
        bench.Sesion  # noqa: B018


def test_a_shard_without_work_is_said_and_is_no_failure(tmp_path: Path) -> None:
    outputs = []
    for shard in ("1/8", "7/8"):
        done = CliRunner().invoke(
            cli, ["run", "--executor", "local", "--results", str(tmp_path), *WORDS, "1", "--shard", shard]
        )
        assert done.exit_code == 0, done.output
        outputs.append(done.stdout)
    assert "shard 1/8: 2 cells run" in outputs[0]
    assert "shard 7/8: nothing to run" in outputs[1]
    assert all(
        "A_last  " not in output and "Learning accuracy" not in output for output in outputs
    )  # no half-full table


def test_shards_are_the_same_on_machines_of_any_size_and_share_the_grid_out(tmp_path: Path) -> None:
    grid = {**GRID, "methods": ["linear_probe", "average", "pm", "ewc"], "seeds": 3}
    parts = {
        workers: [
            {cell.id for trial in session.trials(session.plan(), f"{k}/3") for cell in trial}
            for k in (1, 2, 3)
            for session in [Session(**{**grid, "executor": "ray"}, workers=workers, results=tmp_path, data=DATA)]
        ]
        for workers in (1, 4)
    }
    assert parts[1] == parts[4]
    assert sum(map(len, parts[1])) == len(set.union(*parts[1])) == 12
    assert all(parts[1])


def test_heads_on_one_rule_train_its_chain_once_and_change_no_number(tmp_path: Path) -> None:
    grid: dict[str, Any] = {
        "datasets": ["digits"], "tasks": [3], "executor": "local", "data": DATA, "seeds": 1,
        "methods": ["average@merged", "average@merged/ncm", "average@merged/refit", "pm@merged"],
        "protocol_set": {"train.epochs": 1},
    }  # fmt: skip
    shared, alone = Session(**grid, results=tmp_path / "shared"), Session(**grid, results=tmp_path, use_cache=False)
    plan = shared.plan()
    assert (plan.trainings, plan.trainings_alone) == (6, 12)
    for session in (shared, alone):
        assert session.run().failed == {}
    rows = {row["method"]: row for row in shared.results()}
    spent = [
        rows[f"average@merged{head}" if head else "average_merged"]["train_s_spent"] for head in ("", "/ncm", "/refit")
    ]
    assert sum(seconds > 0 for seconds in spent) == 1
    trained = len(list((tmp_path / "shared" / "cache" / "train").rglob("*.safetensors")))
    assert trained == 3 + 1  # the other rule's chain is of use to nobody; its first task might be
    for row, other in zip(shared.results(), alone.results(), strict=True):
        assert [row[name] for name in ("method", "digest", "a_last", "forgetting", "carried_bytes")] == [
            other[name] for name in ("method", "digest", "a_last", "forgetting", "carried_bytes")
        ]
