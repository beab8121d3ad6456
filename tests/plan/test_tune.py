"""Tuning: one budget for every method, on other class orders than are reported, and what comes out is what is run."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from bench.cli import cli
from bench.common.errors import UserError
from bench.common.paths import ROOT
from bench.config.files import load_protocol
from bench.config.schema import SuiteConfig
from bench.plan.grid import cell_of
from bench.plan.tune import Range, SpaceConfig, axes_of, check_out, choose, plan_searches, points, write_protocol
from bench.report.build import build_report
from tests.config.test_config import REGISTRY, cells_of, written
from tests.helpers.fake_records import record

DATA = ROOT / "data"
NOTHING = SpaceConfig()
QUICK = "title: Quick\nbase: embedded\nper_dataset: {digits: {train: {epochs: 1}}}\n"


def searches_of(methods: list[str], trials: int = 4, protocol: str = "embedded", space: SpaceConfig = NOTHING) -> list:
    suite = SuiteConfig(
        key="t", protocol=[protocol], datasets=["digits"], tasks=[2], methods=methods, seeds="100-101", eval_split="val"
    )
    return plan_searches(suite, trials, space, REGISTRY, DATA, [])


def axes(spelling: str, space: SpaceConfig = NOTHING) -> dict:
    protocol = load_protocol("embedded")
    return axes_of(REGISTRY.resolve(spelling, protocol.tuned), spelling, protocol, space)


# ---- what is searched ----------------------------------------------------------------------------------------------
def test_every_method_that_trains_has_the_learning_rate_and_its_own_options() -> None:
    assert list(axes("finetune")) == list(axes("joint")) == list(axes("average")) == ["train.lr"]
    assert axes("finetune")["train.lr"] == Range(low=0.001, high=0.03)
    assert list(axes("ewc")) == ["train.lr", "lam"]
    assert list(axes("pm")) == ["train.lr", "eps"]
    assert list(axes("ewc+ties@previous")) == ["train.lr", "trainer.lam", "density", "rule.lam"]
    assert list(axes("ties:density=0.1")) == ["train.lr", "lam"]  # what is spelled out stays
    for frozen in ("linear_probe", "ncm", "ridge"):
        assert axes(frozen) == {}


def test_declared_searches_hold_what_their_options_take() -> None:
    from bench.registry.resolved import check_options

    tried = 0
    for cls in [*REGISTRY.trainers.values(), *REGISTRY.rules.values()]:
        required = {"lam": 1.0} if cls.key == "ewc" else {}
        for name, field in cls.options().items():
            search = field.metadata["search"]
            for value in search or ():
                assert check_options(cls, {**required, name: value}, cls.key)[name] == value
                tried += 1
    assert tried > 30


def test_points_are_the_same_for_all_spread_out_and_begin_with_the_defaults() -> None:
    lr, lam = Range(low=0.001, high=0.1), Range(low=1.0, high=1e4)
    one, two = points({"train.lr": lr}, 8), points({"train.lr": lr, "lam": lam, "kind": ["a", "b"]}, 8)
    assert one[0] == two[0] == {}
    assert [p["train.lr"] for p in one[1:]] == [p["train.lr"] for p in two[1:]]
    assert points({"train.lr": lr}, 5) == one[:5]
    assert len({p["train.lr"] for p in one[1:]}) == 7
    logs = [math.log10(p["train.lr"]) for p in points({"train.lr": lr}, 17)[1:]]
    assert all(-3 <= x <= -1 for x in logs)
    assert sum(x < -2 for x in logs) == 8  # evenly in the logarithm
    assert {p["kind"] for p in two[1:]} == {"a", "b"}
    whole = [p["n"] for p in points({"n": Range(low=1, high=8)}, 8)[1:]]
    assert all(type(n) is int and 1 <= n <= 8 for n in whole)


def test_a_space_of_ones_own() -> None:
    space = SpaceConfig.model_validate(
        {"all": {"train.weight_decay": [0, 0.1]}, "methods": {"ewc": {"lam": {"low": 5, "high": 50}, "train.lr": None}}}
    )
    assert axes("ewc", space) == {"train.weight_decay": [0, 0.1], "lam": Range(low=5, high=50)}
    assert list(axes("finetune", space)) == ["train.lr", "train.weight_decay"]
    assert axes("linear_probe", space) == {}


@pytest.mark.parametrize(
    ("space", "told"),
    [
        ({"all": {"train.head_lr": [0.1]}}, "train.head_lr: is one for all methods"),
        ({"all": {"train.epochs": [9]}}, "train.epochs: is one for all methods"),
        ({"methods": {"pm": {"head.kind": ["ncm"]}}}, "head.kind: is one for all methods"),
        ({"all": {"train.lrr": [9]}}, "unknown key 'train.lrr'; did you mean 'train.lr'"),
        ({"all": {"lam": [9]}}, "only a field of the protocol is every method's"),
        ({"methods": {"pn": {"eps": [9]}}}, "unknown method 'pn'; did you mean 'pm'"),
        ({"methods": {"pm": {"epss": [9]}}}, "unknown option 'epss'; did you mean 'eps'"),
        ({"methods": {"pm": {"eps": [-1]}}}, "eps='-1'"),
        ({"methods": {"pm": {"eps": []}}}, "nothing lies between"),
        ({"methods": {"pm": {"eps": {"low": 2, "high": 1}}}}, "nothing lies between"),
    ],
)
def test_a_wrong_space_is_told_before_anything_runs(space: dict, told: str) -> None:
    with pytest.raises(UserError) as error:
        searches_of(["pm"], space=SpaceConfig.model_validate(space))
    assert told in str(error.value)


# ---- trials --------------------------------------------------------------------------------------------------------
def test_every_method_has_the_same_number_of_trials_on_validation_streams() -> None:
    found = {search.name: search.points for search in searches_of(["finetune", "ewc", "linear_probe"])}
    assert {name: len(trials) for name, trials in found.items()} == {"finetune": 4, "ewc": 4, "linear_probe": 0}
    for trials in found.values():
        assert len({cell.id for trial in trials for cell in trial.cells}) == 2 * len(trials)
        for trial in trials:
            assert [c.class_order_seed for c in trial.cells] == [100, 101]
            for cell in trial.cells:
                assert cell.held_out
                assert cell.eval_split == "val"
                assert cell_of(cell.request, REGISTRY, [], ROOT / "data").id == cell.id
                assert cell.protocol.train.lr == trial.values.get("train.lr", 0.01)
                if "lam" in trial.values:
                    assert cell.method.trainer_options["lam"] == trial.values["lam"]
    # Trainings are shared with a method that is trained the same way; trial 0 is an ordinary cell of the protocol.
    assert found["ewc"][0].cells[0].protocol.key == "embedded"
    rates = [[trial.values.get("train.lr") for trial in found[name]] for name in ("finetune", "ewc")]
    assert rates[0] == rates[1]


def test_the_best_finished_trial_wins_and_ties_go_to_the_earlier(tmp_path: Path) -> None:
    def scored(levels: list[list[float | None]]) -> object:
        (search,) = searches_of(["finetune"], len(levels))
        for trial, scores in zip(search.points, levels, strict=True):
            for cell, level in zip(trial.cells, scores, strict=True):
                folder = tmp_path / "runs" / cell.id
                folder.mkdir(parents=True, exist_ok=True)
                (folder / "cell.json").unlink(missing_ok=True)
                if level is not None:
                    counts = [[[10, 100]], [[int(level), 100], [int(level), 100]]]
                    told = record("finetune", n_tasks=2, dataset="digits", counts=counts) | {"id": cell.id}
                    told["coordinates"]["n_tasks"] = 2
                    (folder / "cell.json").write_text(json.dumps(told))
        return choose(search, tmp_path)

    best = scored([[50, 60], [70, 70], [90, None], [70, 70]])
    assert (best.score, best.default, best.spent) == (70, 55, 4)
    assert best.values == searches_of(["finetune"], 4)[0].points[1].values
    assert scored([[70, 70], [70, 70]]).values == {}
    assert scored([[None, 70], [10, 10]]).score == 10
    lost = scored([[None, None], [None, None]])
    assert (lost.values, lost.score, lost.spent) == (None, None, 2)


# ---- the tuned protocol --------------------------------------------------------------------------------------------
def tuned_file(folder: Path, per_method: str, more: str = "") -> str:
    return written(folder, "tuned", f"title: Tuned\nbase: embedded\nper_method:\n{per_method}{more}")


def test_what_is_written_is_what_is_run(tmp_path: Path) -> None:
    from bench.plan.tune import Choice

    suite = SuiteConfig(
        key="t",
        protocol=[written(tmp_path, "quick", QUICK)],
        datasets=["digits"],
        tasks=[2],
        methods=["pm"],
        seeds="100-101",
    )
    (tmp_path / "sub").mkdir()
    out = tmp_path / "sub" / "tuned.yaml"
    choices = [
        Choice("ewc", {"train.lr": 0.003, "lam": 7.5}, 60.0, 50.0, 4), Choice("pm", {}, 60.0, 60.0, 4),
        Choice("linear_probe", None, None, None, 0),
    ]  # fmt: skip
    write_protocol(out, suite, choices, 4)
    told = yaml.safe_load(out.read_text())
    assert told["base"] == "../quick.yaml"
    assert told["per_method"] == {"ewc": {"train": {"lr": 0.003}, "options": {"lam": 7.5}}, "pm": {}}
    ewc, pm, frozen = cells_of(["ewc", "pm", "linear_probe"], str(out))
    assert (ewc.protocol.train.lr, ewc.method.trainer_options["lam"], ewc.method.key) == (0.003, 7.5, "ewc")
    assert (pm.protocol.train.lr, frozen.protocol.train.lr, ewc.protocol.train.epochs) == (0.01, 0.01, 1)
    assert {c.protocol.key for c in (ewc, pm, frozen)} == {"tuned"}  # one table
    assert [bool(c.protocol.per_method) for c in (ewc, pm, frozen)] == [True, True, False]
    for cell in (ewc, pm, frozen):
        again = cell_of(cell.request, REGISTRY, [], ROOT / "data")
        assert (again.id, again.train_keys, again.protocol) == (cell.id, cell.train_keys, cell.protocol)
    # The same values by hand are the same cell but for the protocol's name.
    (by_hand,) = cells_of(["ewc:lam=7.5"], str(tmp_path / "quick.yaml"), protocol_set={"train.lr": [0.003]})
    assert by_hand.train_keys == ewc.train_keys


def test_whose_values_are_whose(tmp_path: Path) -> None:
    file = tuned_file(
        tmp_path,
        "  ewc: {train: {lr: 0.003}, options: {lam: 7.5}}\n  dare_ties: {options: {lam: 0.9}}\n"
        "  average_merged: {train: {lr: 0.004}}\n  ties@merged: {options: {density: 0.4}}\n",
    )
    spelled, online, named, merged, ncm, other, ties, ties_ncm = cells_of(
        [
            "ewc:lam=3",
            "ewc_online",
            "dare_ties",
            "average@merged",
            "average@merged/ncm",
            "average",
            "ties@merged",
            "ties",
        ],
        file,
    )
    assert (spelled.protocol.train.lr, spelled.method.trainer_options["lam"]) == (0.003, 3)  # spelled out stands above
    assert online.protocol.train.lr == 0.01  # another method of the same parts
    assert (named.method.key, named.method.rule_options["lam"]) == ("dare_ties", 0.9)  # above what the name stands for
    assert merged.protocol.train.lr == ncm.protocol.train.lr == 0.004
    assert merged.train_keys == ncm.train_keys  # a head does not change how it is trained
    assert other.protocol.train.lr == 0.01
    assert (ties.method.rule_options["density"], ties_ncm.method.rule_options["density"]) == (0.4, 0.2)
    (by_hand,) = cells_of(["ewc"], file, protocol_set={"train.lr": [0.02], "tuned.ewc.lam": [1.5]})
    assert (by_hand.protocol.train.lr, by_hand.method.trainer_options["lam"]) == (0.02, 1.5)
    for cell in (spelled, online, named, merged, ncm, ties, by_hand):
        again = cell_of(cell.request, REGISTRY, [], ROOT / "data")
        assert (again.id, again.train_keys) == (cell.id, cell.train_keys)


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ("  emc: {train: {lr: 1}}\n", "per_method: unknown method 'emc'; did you mean 'ewc'"),
        ("  ewc: {options: {lan: 1}}\n", "per_method.ewc: 'ewc': unknown option 'lan'; did you mean 'lam'"),
        ("  ewc: {options: {lam: -1}}\n", "per_method.ewc: 'ewc': lam=-1"),
        ("  ewc: {train: {lr: -1}}\n", "per_method.ewc: train.lr: Input should be greater than 0"),
    ],
)
def test_wrong_entries_of_methods(tmp_path: Path, entry: str, told: str) -> None:
    with pytest.raises(UserError) as error:
        cells_of(["ewc"], tuned_file(tmp_path, entry))
    assert told in str(error.value)


def test_class_orders_that_were_tuned_on_are_refused(tmp_path: Path) -> None:
    tuning = "tuning: {trials: 4, repeats: 0-1, datasets: [digits], tasks: [2]}\n"
    file = tuned_file(tmp_path, "  pm: {}\n", tuning)
    with pytest.raises(UserError, match="--seeds: 0: protocol tuned was tuned on these class orders"):
        cells_of(["pm"], file)
    assert cells_of(["pm"], file, eval_split="val")


def test_tables_say_what_tuning_was_spent(tmp_path: Path) -> None:
    tuning = {"trials": 4, "repeats": "100-102", "datasets": ["glyphs"], "tasks": [5]}
    for method, entry in (("pm", {"pm": {}}), ("linear_probe", {})):
        told = record(method, protocol="tuned") | {"protocol": {"tuning": tuning, "per_method": entry}}
        (tmp_path / "runs" / told["id"]).mkdir(parents=True)
        (tmp_path / "runs" / told["id"] / "cell.json").write_text(json.dumps(told))
    said = "4 tuning trials a method on the validation split of glyphs, T = 5, repeats 100-102; none for linear_probe."
    assert said in build_report(tmp_path).markdown()


# ---- the command ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--methods", "pn"], "unknown method 'pn'"),
        (["--methods", "linear_probe"], "none of these has anything to tune"),
        (["--out", "x.txt"], "name a .yaml file"),
        (["--out", "embedded.yaml"], "is a preset's name"),
        (["--out", "no/such/folder/x.yaml"], "no such folder"),
        (["--repeats", "100"], "would be a count"),
        (["--repeats", "x-y"], "neither a count"),
        (["--space", "no.yaml"], "no.yaml: No such file"),
        (["--trials", "0"], "0 is not in the range"),
        (["--datasets", "glyfs"], "unknown dataset"),
    ],
)
def test_mistakes_cost_one_line(tmp_path: Path, arguments: list[str], told: str) -> None:
    given = ["--methods", "pm", "--datasets", "digits", "--tasks", "2", "--out", str(tmp_path / "t.yaml"), *arguments]
    done = CliRunner().invoke(
        cli, ["tune", "--executor", "local", "--results", str(tmp_path / "r"), "--data", str(DATA), *given]
    )
    assert done.exit_code == 2
    assert told in done.output
    assert not list(tmp_path.rglob("cell.json"))


def test_the_protocol_that_is_tuned_is_not_overwritten(tmp_path: Path) -> None:
    file = written(tmp_path, "quick", QUICK)
    with pytest.raises(UserError, match="is the protocol that is tuned"):
        check_out(Path(file), file)


@pytest.mark.run
def test_tune_then_run(tmp_path: Path) -> None:
    base, out, results = written(tmp_path, "quick", QUICK), tmp_path / "tuned.yaml", tmp_path / "results"
    grid = ["--datasets", "digits", "--tasks", "2", "--methods", "finetune linear_probe", "--executor", "local"]
    grid += ["--results", str(results), "--data", str(DATA)]
    tune = ["tune", *grid, "--protocol", base, "--trials", "2", "--repeats", "100,", "--out", str(out)]
    done = CliRunner().invoke(cli, tune)
    assert done.exit_code == 0, done.output
    assert "2 of 2" in done.output
    assert "nothing to tune" in done.output
    assert len(list(results.glob("runs/*/cell.json"))) == 2
    told = yaml.safe_load(out.read_text())
    assert list(told["per_method"]) == ["finetune"]
    assert told["tuning"] == {"trials": 2, "repeats": "100,", "datasets": ["digits"], "tasks": [2]}
    again = CliRunner().invoke(cli, [*tune, "--json"])
    assert [row["spent"] for row in json.loads(again.output)] == [2, 0]
    assert yaml.safe_load(out.read_text()) == told
    ran = CliRunner().invoke(cli, ["run", *grid, "--protocol", str(out), "--seeds", "1"])
    assert ran.exit_code == 0, ran.output
    assert "protocol tuned" in ran.output
    assert "2 tuning trials a method" in ran.output
    assert "none for linear_probe" in ran.output
    refused = CliRunner().invoke(cli, ["run", *grid, "--protocol", str(out), "--seeds", "100,"])
    assert refused.exit_code == 2
