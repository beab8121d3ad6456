"""A cell from start to record: resuming, sharing, staleness and failure change no number."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bench.common.cache import Store
from bench.common.strict_json import dumps, strict
from bench.config.schema import SuiteConfig
from bench.plan.cell import Cell
from bench.plan.grid import expand
from bench.plan.todo import make_plan
from bench.records import metrics
from bench.records.record import read_record
from bench.registry import Registry
from bench.run.cell import run_cell
from bench.run.workbench import Workbench

DATA = Path(__file__).parent.parent.parent / "data"
NUMBERS = ("counts", "counts_taskaware", "before_merge", "before_merge_taskaware", "digest")


def cells(*methods: str, n_tasks: int = 3, seeds: str = "1", split: str = "test", **overrides: object) -> list[Cell]:
    suite = SuiteConfig(
        key="test", protocol="embedded", datasets=["digits"], tasks=[n_tasks], methods=list(methods), seeds=seeds,
        eval_split=split,
    )  # fmt: skip
    found, _ = expand(suite, Registry.load(), DATA, [], {"train.epochs": 1, "per_dataset": {}, **overrides})
    return found


def bench(results: Path, cache: bool = True) -> Workbench:
    return Workbench(results, DATA, Store(results / "cache", cache))


def numbers(record: dict) -> list:
    assert record["status"] == "done", record.get("error")
    return [record[name] for name in NUMBERS] + [t["trained_digest"] for t in record["tasks"]]


EVERY_KIND = ("pm", "ewc", "trm:steps=3", "task_arithmetic", "lora_m_gauss", "experts")


class Stop(BaseException):
    """Like Ctrl-C: not an error of the cell."""


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list]:
    """The numbers of a cell of two tasks, run alone in one go without a cache."""

    @functools.cache
    def run(method: str) -> list:
        (cell,) = cells(method, n_tasks=2)
        results = tmp_path_factory.mktemp("uninterrupted")
        told = numbers(run_cell(cell, bench(results, cache=False)))
        assert not (results / "cache").exists()
        return told

    return run


@pytest.mark.parametrize("method", EVERY_KIND)
def test_resumed_after_any_phase_equals_uninterrupted(
    tmp_path: Path, method: str, uninterrupted: Callable[[str], list]
) -> None:
    (cell,) = cells(method, n_tasks=2)
    for phase, task in (("evaluating", 1), ("training", 2), ("merging", 2)):
        results = tmp_path / f"{phase}{task}"

        def stop(beat: dict, phase: str = phase, task: int = task) -> None:
            if (beat["phase"], beat["task"]) == (phase, task):
                raise Stop

        with pytest.raises(Stop):
            run_cell(cell, bench(results, cache=False), progress=stop)
        assert not (results / "runs" / cell.id / "cell.json").exists()
        beats: list[dict] = []
        again = run_cell(cell, bench(results, cache=False), progress=beats.append)
        assert numbers(again) == uninterrupted(method)
        assert [b["task"] for b in beats if b["phase"] == "training"] == list(range(task, 3))  # only what was not done
        left = {p.name for p in (results / "runs" / cell.id).iterdir()}
        assert left == {"cell.json", "pred.npz"}


@pytest.mark.parametrize("method", [*EVERY_KIND, "finetune", "joint", "linear_probe"])
def test_cache_on_equals_off_and_repeats_are_bit_equal(
    tmp_path: Path, method: str, uninterrupted: Callable[[str], list]
) -> None:
    (cell,) = cells(method, n_tasks=2)
    cold = run_cell(cell, bench(tmp_path))
    (tmp_path / "runs" / cell.id / "cell.json").unlink()
    warm = run_cell(cell, bench(tmp_path))
    assert uninterrupted(method) == numbers(cold) == numbers(warm)
    if method != "joint":  # which is trained once, at the end
        assert cold["tasks"][0]["seconds"]["train_spent"] > 0 == warm["tasks"][0]["seconds"]["train_spent"]


def test_shared_trainings_are_trained_once(tmp_path: Path) -> None:
    asked = cells("average", "task_arithmetic", "experts", "pm_alpha@pretrained")
    plan = make_plan(asked, {}, tmp_path, DATA, Store(tmp_path / "cache"))
    assert (plan.trainings, plan.trainings_alone) == (3, 12)
    spent = [run_cell(cell, bench(tmp_path))["totals"]["train_s_spent"] for cell in asked]
    assert spent[0] > 0
    assert spent[1:] == [0, 0, 0]
    again = make_plan(asked, {}, tmp_path, DATA, Store(tmp_path / "cache"))
    assert (again.trainings, again.to_run, len(again.done)) == (0, [], 4)


def test_merged_chains_share_only_their_first_task(tmp_path: Path) -> None:
    asked = cells("average@merged", "plain+pm_alpha@merged", "average@pretrained")
    plan = make_plan(asked, {}, tmp_path, DATA, Store(tmp_path / "cache"))
    assert plan.trainings == 1 + 2 + 2 + 2
    for cell in asked:
        run_cell(cell, bench(tmp_path))
    kept = list((tmp_path / "cache" / "train").rglob("*.safetensors"))
    assert len(kept) == 3  # the shared first task, and the two more of the pretrained chain


def test_a_snapshot_rule_asks_a_stored_training_again_and_gets_the_same_bits(tmp_path: Path) -> None:
    plain, trm = cells("average@merged", "trm:steps=2", n_tasks=2)
    alone = numbers(run_cell(trm, bench(tmp_path / "alone", cache=False)))
    run_cell(plain, bench(tmp_path / "shared"))
    assert numbers(run_cell(trm, bench(tmp_path / "shared"))) == alone


def test_identities_between_methods(tmp_path: Path) -> None:
    table = {
        c.method.variant: run_cell(c, bench(tmp_path))
        for c in cells(
            "finetune", "last@merged", "ewc:lam=0", "trm_init", "average@merged", "average@pretrained",
            "task_arithmetic@pretrained:lam=1,over_t=true", "perturb+pm_alpha@merged:eps=0", "lora_m",
        )
    }  # fmt: skip
    digest = {name: record["digest"] for name, record in table.items()}
    assert digest["plain+last@previous"] == digest["plain+last@merged"] == digest["ewc+last@previous:lam=0"]
    assert digest["plain+trm@merged:steps=0"] == digest["plain+average@merged"]
    assert digest["perturb+pm_alpha@merged:eps=0"] == digest["plain+pm_alpha@merged"]
    one, other = (table[v] for v in ("plain+average@pretrained", "plain+task_arithmetic@pretrained:lam=1,over_t=true"))
    assert one["counts"] == other["counts"]
    assert digest["plain+average@merged"] != digest["plain+average@pretrained"]


def test_the_record_is_whole_and_its_predictions_give_its_counts(tmp_path: Path) -> None:
    (cell,) = cells("pm")
    record = run_cell(cell, bench(tmp_path))
    folder = tmp_path / "runs" / cell.id
    assert read_record(folder / "cell.json")["status"] == "done"
    with np.load(folder / "pred.npz", allow_pickle=False) as kept:
        true, predicted, within = kept["true"], kept["predicted"], kept["predicted_taskaware"]
    edges = [0, 3, 6, 10]
    for table, source in ((record["counts"], predicted), (record["counts_taskaware"], within)):
        for t, row in enumerate(table):
            for i, (correct, total) in enumerate(row):
                mine = (true >= edges[i]) & (true < edges[i + 1])
                assert total == mine.sum()
                assert correct == (source[t][mine] == true[mine]).sum()
            unseen = true >= edges[t + 1]
            assert (source[t][unseen] == -1).all()
            assert (source[t][~unseen] >= 0).all()
            assert source[t].max() < edges[t + 1]
    assert sum(total for _, total in record["counts"][-1]) == 544
    assert record["totals"]["carried_bytes"] == 2 * 32768 * 4  # S and m
    assert record["totals"]["opt_steps"] == sum(task["opt_steps"] for task in record["tasks"])
    assert set(record["tasks"][0]["onset"]["loss"]) == {"0"}  # six steps a task: no step 10
    told = json.dumps(record)
    assert str(Path.home()) not in told
    assert str(tmp_path) not in told


@pytest.mark.parametrize(
    ("method", "floats"),
    [
        ("finetune", 0), ("average", 0), ("average@merged", 0), ("task_arithmetic", 32768), ("ewc", 2 * 32768),
        ("average@previous", 32768), ("trm:steps=1", 0), ("linear_probe", 0), ("pm_average", 0),
    ],
)  # fmt: skip
def test_carried_bytes(tmp_path: Path, method: str, floats: int) -> None:
    (cell,) = cells(method, n_tasks=2)
    assert run_cell(cell, bench(tmp_path))["totals"]["carried_bytes"] == 4 * floats


def test_joint_has_only_its_last_row(tmp_path: Path) -> None:
    (cell,) = cells("joint")
    record = run_cell(cell, bench(tmp_path))
    assert record["counts"][:2] == [None, None]
    last = metrics.a_last(record["counts"])
    assert last is not None
    assert last > 50
    assert metrics.avg_acc(record["counts"]) is None
    assert metrics.forgetting(record["counts"]) is None


def test_experts_rows_are_each_tasks_own_model(tmp_path: Path) -> None:
    experts, alone = (run_cell(c, bench(tmp_path)) for c in cells("experts", "average@pretrained"))
    for t, row in enumerate(experts["counts"]):
        assert row == [alone["before_merge_taskaware"][i] for i in range(t + 1)]


def test_validation_split_never_touches_the_test_part(tmp_path: Path) -> None:
    (cell,) = cells("average", n_tasks=2, split="val")
    record = run_cell(cell, bench(tmp_path))
    assert 100 < sum(total for _, total in record["counts"][-1]) < 140  # a tenth of 1,253
    assert "-val-" in cell.id


def test_failure_is_a_record_and_the_next_run_tries_again(tmp_path: Path) -> None:
    (cell,) = cells("finetune", n_tasks=2, **{"train.lr": 1e30})
    record = run_cell(cell, bench(tmp_path))
    assert (record["status"], record["error"]["type"]) == ("failed", "FloatingPointError")
    assert "diverged" in record["error"]["message"]
    kept = read_record(tmp_path / "runs" / cell.id / "cell.json")
    assert kept["status"] == "failed"
    plan = make_plan([cell], {}, tmp_path, DATA, Store(tmp_path / "cache"))
    assert (plan.failed, plan.to_run) == ([cell.id], [cell])


def test_a_cell_whose_process_died_twice_is_failed_unrun(tmp_path: Path) -> None:
    (cell,) = cells("finetune", n_tasks=2)
    for _ in range(2):
        with pytest.raises(Stop):
            run_cell(cell, bench(tmp_path), job="j", progress=_raise)
    record = run_cell(cell, bench(tmp_path), job="j", progress=_raise)
    assert record["error"]["type"] == "ProcessDied"
    assert run_cell(cell, bench(tmp_path), job="another")["status"] == "done"


def _raise(beat: dict) -> None:
    if beat["phase"] == "training":
        raise Stop


def test_changed_code_makes_a_record_stale_and_a_half_done_cell_start_over(tmp_path: Path) -> None:
    plugin = tmp_path / "mine.py"
    source = (
        "from bench.method import Rule, Task, Weights, option, rule\n\n\n@rule('mine')\nclass Mine(Rule):\n"
        "    '''Doc.'''\n    share: float = option(0.5, help='of the new model')\n\n"
        "    def merge(self, task: Task) -> Weights:\n"
        "        return task.served + (task.trained - task.served) * self.share\n"
    )

    def planned(text: str) -> tuple[Cell, list[str], int]:
        plugin.write_text(text)
        suite = SuiteConfig(
            key="test", protocol="embedded", datasets=["digits"], tasks=[2], methods=["mine@pretrained"], seeds="1"
        )
        (cell,), _ = expand(suite, Registry.load([plugin]), DATA, [], {"train.epochs": 1, "per_dataset": {}})
        plan = make_plan([cell], {}, tmp_path, DATA, Store(tmp_path / "cache"), ["stale"])
        return cell, plan.stale, plan.trainings

    cell, stale, trainings = planned(source)
    assert (stale, trainings) == ([], 2)
    first = run_cell(cell, bench(tmp_path))
    assert planned(source)[1] == []
    assert planned(source.replace("Doc.", "Other words.") + "\n# a comment\n")[1] == []
    edited, stale, trainings = planned(source.replace("return task.served", "return task.served * 1.0"))
    assert (edited.id, stale, trainings) == (cell.id, [cell.id], 0)  # only the merge runs again
    assert run_cell(edited, bench(tmp_path))["totals"]["train_s_spent"] == 0
    changed, stale, _ = planned(source.replace("0.5", "0.25"))
    assert (changed.id, stale) == (cell.id, [])  # another default is another method: outdated, and not stale alone
    assert first["coordinates"]["variant"] == "plain+mine@pretrained"


# ---- plugins that write into what they are handed ------------------------------------------------------------------
BLEND = """
from bench.method import Rule, rule

@rule("blend_inplace")
class Blend(Rule):
    def merge(self, task):
        task.served.vector.add_(task.trained.vector).mul_(0.5)
        return task.served
"""
PULL = """
from bench.method import Trainer, trainer

@trainer("pull")
class Pull(Trainer):
    def weights(self, theta, start, rng):
        start.vector.data.mul_(1.001)
        return theta
"""


@pytest.mark.parametrize(
    ("source", "method", "message"),
    [
        (BLEND, "blend_inplace@merged", "rule blend_inplace changed task.served in place; work on a copy"),
        (PULL, "pull+average@pretrained", "trainer pull changed start in place; work on a copy"),
    ],
)
def test_a_plugin_that_writes_in_place_fails_alone_and_poisons_nothing(
    tmp_path: Path, source: str, method: str, message: str
) -> None:
    (tmp_path / "plugin.py").write_text(source)
    suite = SuiteConfig(
        key="test", protocol="embedded", datasets=["digits"], tasks=[2], methods=[method, "finetune"], seeds="1"
    )
    overrides = {"train.epochs": 1, "per_dataset": {}}
    [bad, good], _ = expand(suite, Registry.load([tmp_path / "plugin.py"]), DATA, [], overrides)
    together, [alone] = bench(tmp_path / "together"), cells("finetune", n_tasks=2)
    failed = run_cell(bad, together)
    assert failed["status"] == "failed"
    assert failed["error"]["message"].startswith(message)
    clean = numbers(run_cell(alone, bench(tmp_path / "alone", cache=False)))
    assert numbers(run_cell(good, together)) == clean  # in the same process
    (together.results / "runs" / good.id / "cell.json").unlink()
    assert numbers(run_cell(good, bench(together.results))) == clean  # and from its cache


# ---- numbers that are none -----------------------------------------------------------------------------------------
def test_a_logged_nan_is_null_in_a_record_that_strict_readers_take(tmp_path: Path) -> None:
    (tmp_path / "plugin.py").write_text(
        "from bench.method import Rule, rule\n@rule('noisy')\nclass Noisy(Rule):\n    def merge(self, task):\n"
        "        task.log(alpha=float('nan'), far=float('-inf'), merge_steps=float('nan'), near=0.5)\n"
        "        return task.trained\n"
    )
    suite = SuiteConfig(
        key="t", protocol="embedded", datasets=["digits"], tasks=[2], methods=["noisy@pretrained"], seeds="1"
    )
    overrides = {"train.epochs": 1, "per_dataset": {}}
    [cell], _ = expand(suite, Registry.load([tmp_path / "plugin.py"]), DATA, [], overrides)
    record = run_cell(cell, bench(tmp_path))
    assert record["tasks"][0]["scalars"] == {"alpha": None, "far": None, "merge_steps": None, "near": 0.5}
    file = tmp_path / "runs" / cell.id / "cell.json"

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    assert json.loads(file.read_text(), parse_constant=refuse) == record
    assert read_record(file) == record


def test_every_float_of_a_record_is_finite_or_null() -> None:
    tree = {"loss": [1.0, float("inf"), {"0": float("nan")}], "n": 3, "name": "NaN", "none": None, "pair": (1, 2.5)}
    assert strict(tree) == {"loss": [1.0, None, {"0": None}], "n": 3, "name": "NaN", "none": None, "pair": [1, 2.5]}
    assert "NaN" not in dumps(tree).replace('"NaN"', "")


def test_an_older_record_with_a_bare_nan_is_read(tmp_path: Path) -> None:
    [cell] = cells("finetune", n_tasks=2)
    record = run_cell(cell, bench(tmp_path))
    file = tmp_path / "runs" / cell.id / "cell.json"
    record["tasks"][0]["scalars"]["alpha"] = float("nan")
    file.write_text(json.dumps(record))
    read = read_record(file)
    assert read["status"] == "done"
    assert read["tasks"][0]["scalars"]["alpha"] is None
