"""The command line: contracts that scripts rely on, and mistakes that cost one line and exit code 2."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from bench.cli import COMMANDS, cli
from bench.common.errors import Interrupted
from bench.common.paths import ROOT

DATA = ROOT / "data"
TINY = [
    "--datasets",
    "digits",
    "--tasks",
    "2",
    "--seeds",
    "1",
    "--protocol-set",
    "train.epochs=1",
    "--protocol-set",
    "per_dataset={}",
]
COLUMNS = (
    "dataset,n_tasks,protocol,method,variant,start,class_order_seed,run_seed,status,a_last,avg_acc,forgetting,"
    "a_last_taskmean,avg_acc_taskmean,forgetting_taskmean,a_last_taskaware,learn_acc,merge_drop,train_s_alone,"
    "train_s_spent,merge_s,eval_s,wall_s,opt_steps,peak_mb,carried_bytes,digest,scenario"
)


def in_a_shell(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command as a user's shell runs it."""
    return subprocess.run(
        [sys.executable, "-m", "bench", *arguments], capture_output=True, text=True, check=False,
        env={**os.environ, "CLMERGE_DATA": str(DATA), "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def clmerge(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command in this process: a new one imports torch for ten seconds."""
    done = CliRunner(env={"CLMERGE_DATA": str(DATA)}).invoke(cli, arguments)
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return subprocess.CompletedProcess(arguments, done.exit_code, done.stdout, done.stderr)


def run_local(results: Path, methods: str, *more: str) -> subprocess.CompletedProcess[str]:
    return clmerge("run", "--executor", "local", "--results", str(results), "--methods", methods, *TINY, *more)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder with two cells."""
    results = tmp_path_factory.mktemp("results")
    done = run_local(results, "average task_arithmetic")
    assert done.returncode == 0, done.stderr
    for said in (
        "2 cells",
        "2 to run",
        "2 task trainings (4 without sharing)",
        "average",
        "task_arithmetic",
        "records:",
    ):
        assert said in done.stdout
    return results


def test_help_is_quick_and_has_examples() -> None:
    times = []
    for _ in range(3):
        began = time.perf_counter()
        done = in_a_shell("--help")
        times.append(time.perf_counter() - began)
    assert done.returncode == 0
    assert "Examples:" in done.stdout
    assert min(times) < 1.0
    for command in COMMANDS:
        assert clmerge(command, "--help").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--methods", "pn"], "unknown method 'pn'; did you mean 'pm'?"),
        (["--methods", "pm:epss=1"], "unknown option 'epss'; did you mean 'eps'?"),
        (["--methods", "pm:eps=big"], "eps='big'"),
        (["--datasets", "glyfs"], "unknown dataset 'glyfs'; did you mean 'glyphs'"),
        (["--datasets", "glyphs_base"], "is for pre-training"),
        (["--datasets", ""], "--datasets: empty"),
        (["--tasks", "0"], "0 tasks do not fit"),
        (["--tasks", "11"], "11 tasks do not fit 'digits', which has 10 classes"),
        (["--tasks", "five"], "tasks.0: Input should be a valid integer"),
        (["--protocol", "embeded"], "unknown protocol 'embeded'; did you mean 'embedded'"),
        (["--protocol-set", "train.epoch=1"], "unknown key 'train.epoch'; did you mean 'train.epochs'"),
        (["--protocol-set", "train.epochs=none"], "train.epochs: Input should be a valid integer"),
        (["--protocol-set", "train.epochs.x=1"], "train.epochs has no keys below it"),
        (["--protocol-set", "train.epochs"], "is not KEY=VALUE"),
        (["--protocol-set", "backbone.weights=/no/such.safetensors"], "no file /no/such.safetensors"),
        (["--protocol-set", "backbone.sha256=abc"], "has another checksum"),
        (["--seeds", "x"], "neither a count"),
        (["--seeds", "0"], "neither a count"),
        (["--seeds", "1,1"], "neither a count"),
        (["--start", "merge"], "start.0: Input should be 'pretrained', 'previous' or 'merged'"),
        (["--suite", "nope"], "unknown suite 'nope'"),
        (["--shard", "3/2"], "--shard: '3/2' is not K/N"),
        (["--plugins", "/no/such/folder"], "no plugin folder or file /no/such/folder"),
        (["--epochs", "3"], "No such option"),
        (["--executor", "dask"], "'dask' is not one of"),
        (["--workers", "0"], "0 is not in the range"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_exit_2_and_nothing_written(tmp_path: Path, arguments: list[str], told: str) -> None:
    results = tmp_path / "results"
    done = clmerge("run", "--executor", "local", "--results", str(results), "--datasets", "digits", "--methods", "average", *arguments)  # fmt: skip
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    if done.stderr.startswith("clmerge:"):
        assert done.stderr.count("\n") == 1
    assert not list(results.rglob("*.json"))


def test_a_shell_sees_the_same_exit_codes_and_streams(ran: Path) -> None:
    done = in_a_shell(
        "run", "--executor", "local", "--results", str(ran), "--methods", "average task_arithmetic", *TINY
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "2 done, 0 to run" in done.stdout
    wrong = in_a_shell("plan", "--methods", "pn")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.startswith("clmerge: methods: unknown method 'pn'; did you mean 'pm'?")
    assert wrong.stderr.count("\n") == 1


def test_yaml_mistakes_name_file_and_key(tmp_path: Path) -> None:
    good = (ROOT / "suites" / "embedded.yaml").read_text()
    for change, told in (
        (("datasets:", "datsets:"), "datsets"),
        (("tasks: [5]", "tasks: five"), "tasks"),
        (("methods: [", "methods: [["), "not valid YAML"),
    ):
        file = tmp_path / "mine.yaml"
        file.write_text(good.replace(*change))
        done = clmerge("plan", "--suite", str(file))
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert str(file) in done.stderr
        assert told in done.stderr


def test_a_plugin_that_raises_is_named_and_debug_shows_the_traceback(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("1 / 0\n")
    done = clmerge("plan", "--plugins", str(tmp_path))
    assert done.returncode == 2
    assert f"plugin {tmp_path / 'bad.py'}, line 1: ZeroDivisionError" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Traceback" in in_a_shell("plan", "--plugins", str(tmp_path), "--debug").stderr


def test_second_run_trains_nothing(ran: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in ran.rglob("cell.json")}
    done = run_local(ran, "average task_arithmetic")
    assert (done.returncode, done.stderr) == (0, "")
    assert "2 done, 0 to run" in done.stdout
    assert {p: p.stat().st_mtime_ns for p in ran.rglob("cell.json")} == before


def test_a_rule_from_outside_reuses_the_training_and_the_plan_says_so(
    ran: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = tmp_path / "results"
    shutil.copytree(ran, results)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "halfway.py").write_text(
        "from bench.method import Rule, rule\n\n\n@rule('halfway')\nclass Halfway(Rule):\n"
        "    def merge(self, task):\n        return (task.served + task.trained) / 2\n"
    )
    monkeypatch.chdir(tmp_path)
    done = run_local(Path("results"), "halfway@pretrained", "--plugins", "mine")
    assert done.returncode == 0, done.stderr
    assert "nothing is trained" in done.stdout
    assert len(list(results.glob("runs/*halfway*/cell.json"))) == 1


def test_results_contract(ran: Path, tmp_path: Path) -> None:
    done = clmerge("results", "--csv", "-", "--results", str(ran))
    assert done.stdout.splitlines()[0].startswith(COLUMNS)
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [row["method"] for row in rows] == ["average", "task_arithmetic"]
    for row in rows:
        assert row["status"] == "done"
        assert 10 < float(row["a_last"]) < 100
        assert (row["dataset"], row["n_tasks"], row["start"]) == ("digits", "2", "pretrained")
    file = tmp_path / "out.csv"
    assert clmerge("results", "--csv", str(file), "--results", str(ran)).returncode == 0
    assert file.read_text() == done.stdout
    as_json = json.loads(clmerge("results", "--json", "--results", str(ran)).stdout)
    assert [row["digest"] for row in as_json] == [row["digest"] for row in rows]


def test_plan_and_list_contracts(ran: Path) -> None:
    plan = json.loads(clmerge("plan", "--json", "--results", str(ran), "--methods", "average pm", *TINY).stdout)
    assert {"cells", "done", "stale", "trainings", "blocked"} <= set(plan)
    assert (len(plan["cells"]), len(plan["done"]), plan["stale"], plan["trainings"]) == (2, 1, [], 2)
    assert {"id", "dataset", "n_tasks", "method", "class_order_seed", "run_seed"} <= set(plan["cells"][0])
    methods = json.loads(clmerge("list", "methods", "--json").stdout)
    for row in methods:
        assert {"key", "title", "paper", "status", "trainer", "rule", "start", "state", "data"} <= set(row)
    assert {r["status"] for r in methods if r["key"].startswith("trm")} == {"reconstruction"}
    datasets = {row["key"]: row for row in json.loads(clmerge("list", "datasets", "--json").stdout)}
    for key in ("glyphs", "glyphs_rot90", "glyphs_xor", "digits"):
        assert {"classes", "train", "test", "tasks", "available", "why_not"} <= set(datasets[key])
        assert datasets[key]["available"] is True
    for what in ("trainers", "rules", "protocols", "suites"):
        assert all("key" in row for row in json.loads(clmerge("list", what, "--json").stdout))


def test_report_writes_every_format(ran: Path, tmp_path: Path) -> None:
    done = clmerge("report", "--results", str(ran), "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert {"table.md", "table.tex", "table.csv", "accuracy_over_tasks.png", "accuracy_over_tasks.pdf"} <= names
    assert "task_arithmetic" in (tmp_path / "out" / "table.md").read_text()


def test_a_failing_cell_is_a_row_and_the_others_finish(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text(
        "from bench.method import Rule, rule\n\n\n@rule('bad')\nclass Bad(Rule):\n"
        "    def merge(self, task):\n        raise ValueError('on purpose')\n"
    )
    done = run_local(tmp_path / "results", "bad@merged average", "--plugins", str(tmp_path / "bad.py"))
    assert done.returncode == 1
    assert "ValueError: on purpose" in done.stdout
    assert "failed 1/1" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    table = clmerge("results", "--results", str(tmp_path / "results")).stdout
    status = {row["method"]: row["status"] for row in csv.DictReader(io.StringIO(table))}
    assert status == {"bad@merged": "failed", "average": "done"}
    again = run_local(tmp_path / "results", "bad@merged average", "--plugins", str(tmp_path / "bad.py"))
    assert "1 done, 1 failed before, 1 to run" in again.stdout


def test_a_damaged_record_stops_the_run_and_is_named(ran: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    shutil.copytree(ran, results)
    file = next(results.glob("runs/*average*/cell.json"))
    whole = file.read_text()
    record = json.loads(whole)
    record["counts"][-1][0][0] += 1
    for text, told in (
        (json.dumps(record), "edited by hand"),
        (whole[: len(whole) // 2], "unreadable"),
        ("", "unreadable"),
    ):
        file.write_text(text)
        done = run_local(results, "average")
        assert done.returncode == 2
        assert str(file) in done.stderr
        assert told in done.stderr
        assert "delete this file" in done.stderr
        assert file.read_text() == text
        table = csv.DictReader(io.StringIO(clmerge("results", "--results", str(results)).stdout))
        assert "damaged" in {row["status"] for row in table}
    file.unlink()
    assert run_local(results, "average").returncode == 0


def test_no_disk_space_is_found_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 1000

    monkeypatch.setattr("bench.plan.forecast.shutil.disk_usage", lambda _: Usage)
    arguments = [
        "run",
        "--executor",
        "local",
        "--results",
        str(tmp_path),
        "--data",
        str(DATA),
        "--methods",
        "average",
        *TINY,
    ]
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 2
    assert "0.00 GB free" in done.output
    assert not list(tmp_path.rglob("cell.json"))


def test_an_unwritable_results_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = run_local(tmp_path / "file" / "results", "average")
    assert done.returncode == 2
    assert done.stderr.startswith("clmerge: ")
    assert "Traceback" not in done.stderr


def test_every_grid_option_changes_the_plan() -> None:
    def ids(*arguments: str) -> set[str]:
        done = clmerge("plan", "--json", "--methods", "average pm", "--datasets", "digits", *arguments)
        assert done.returncode == 0, done.stderr
        return {cell["id"] for cell in json.loads(done.stdout)["cells"]}

    base = ids()
    assert len(base) == 6
    changed = [
        ids("--tasks", "2"), ids("--start", "previous"), ids("--seeds", "3-5"), ids("--class-order-seed", "7"),
        ids("--run-seed", "7"), ids("--protocol-set", "lora.rank=4"), ids("--eval-split", "val"),
        ids("--datasets", "glyphs"), ids("--methods", "ewc"),
    ]  # fmt: skip
    assert all(not (base & other) or other != base for other in changed)
    assert len({frozenset(x) for x in [base, *changed]}) == 1 + len(changed)
    assert len(ids("--start", "pretrained,merged")) == 12
    assert len(ids("--methods", "pm:eps=0.1 pm:eps=0.2,clamp=false")) == 6
    assert ids("--methods", "pm pm:eps=0.5 perturb+pm_alpha@merged") == ids("--methods", "pm")


def test_datasets_all_lists_what_is_missing_and_goes_on() -> None:
    done = clmerge("plan", "--json", "--datasets", "all", "--methods", "average", "--seeds", "1")
    assert done.returncode == 0
    keys = {cell["dataset"] for cell in json.loads(done.stdout)["cells"]}
    assert {"glyphs", "glyphs_rot90", "glyphs_xor", "digits"} <= keys
    assert "glyphs_base" not in keys


def test_datasets_all_leaves_out_what_the_protocol_cannot_show_and_a_named_one_is_refused(tmp_path: Path) -> None:
    own = tmp_path / "plugins" / "colour.yaml"
    own.parent.mkdir()
    np.savez(tmp_path / "colour.npz", **{
        f"{name}_{split}": array
        for split in ("train", "test")
        for name, array in (("x", np.random.default_rng(len(split)).integers(0, 255, (8, 32, 32, 3), np.uint8)),
                            ("y", np.arange(8) % 2))
    })  # fmt: skip
    own.write_text(
        "title: Colour\nlayout: arrays\noptions: {path: colour.npz}\nclasses: 2\ntrain: 8\ntest: 8\ntasks: [2]\n"
        "protocol: tiny_imagenet\nimage: {size: 32, channels: 3, mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5]}\n"
    )
    place = ["--data", str(tmp_path), "--plugins", str(own.parent), "--methods", "average", "--seeds", "1", "--json"]
    five = json.loads(clmerge("plan", "--datasets", "all", *place).stdout)  # tasks, by the default suite
    assert "5 tasks do not fit 'colour'" in five["blocked"]["colour"]
    place += ["--tasks", "2"]
    free = json.loads(clmerge("plan", "--datasets", "all", *place).stdout)
    protocols = {cell["dataset"]: cell["protocol"] for cell in free["cells"]}
    assert protocols["colour"] == "tiny_imagenet"  # its own, beside those of the others
    assert protocols["digits"] == "embedded"
    fixed = json.loads(clmerge("plan", "--datasets", "all", "--protocol", "embedded", *place).stdout)
    assert "colour" not in {cell["dataset"] for cell in fixed["cells"]}
    assert "takes 1 channels of 16 pixels" in fixed["blocked"]["colour"]
    named = clmerge("plan", "--datasets", "colour", "--protocol", "embedded", *place)
    assert named.returncode == 2
    assert "use another protocol, such as tiny_imagenet" in named.stderr


def test_shards_share_the_grid_out_whatever_is_done_already(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[set[str]] = []

    def execute(trials: list[list], *_: object) -> object:
        asked.append({cell.id for trial in trials for cell in trial})
        raise KeyboardInterrupt  # nothing is run here

    monkeypatch.setattr("bench.session.execute", execute)
    grid = ["--methods", "average pm ewc", "--datasets", "digits glyphs", "--seeds", "3", "--results", str(tmp_path)]
    for k in (1, 2, 3):
        CliRunner().invoke(cli, ["run", "--executor", "local", "--data", str(DATA), "--shard", f"{k}/3", *grid])
    assert len(set.union(*asked)) == sum(map(len, asked)) == 18
    assert all(asked)


@pytest.mark.parametrize("command", ["run", "landscape", "tune", "paper"])
def test_an_interruption_is_one_line_and_exit_130(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    def execute(*_: object) -> object:
        raise Interrupted(3, 7)

    monkeypatch.setattr("bench.session.execute", execute)
    monkeypatch.setattr("bench.execute.resources.slots", lambda *_: 1)
    grid = ["--methods", "average", "--datasets", "digits", "--tasks", "2", "--seeds", "1"]
    arguments = {
        "run": ["run", "--executor", "local", *grid],
        "landscape": ["landscape", *grid],
        "tune": ["tune", *grid[:-2], "--trials", "2", "--out", str(tmp_path / "tuned.yaml")],
        "paper": ["paper", "--tables", "embedded", "--run", "--out", str(tmp_path / "paper")],
    }
    done = clmerge(*arguments[command], "--results", str(tmp_path / "results"), "--quiet")
    assert done.returncode == 130, done.stderr
    assert "Interrupted with 3 of 7 runs finished; the same command goes on where it stopped" in done.stderr
    assert not list(tmp_path.rglob("*.yaml"))
