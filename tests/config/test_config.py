"""Configuration: overrides reach what they name, and nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bench.commands.options import alternatives
from bench.common.cache import Store
from bench.common.errors import UserError
from bench.common.paths import ROOT
from bench.config.dotted import merged
from bench.config.files import for_dataset, load_dataset_config, load_protocol, load_suite
from bench.config.schema import SuiteConfig
from bench.data.class_order import class_order
from bench.data.dataset import availability
from bench.plan.cell import Cell
from bench.plan.forecast import describe, preflight
from bench.plan.grid import cell_of, expand, parse_seeds
from bench.plan.todo import make_plan
from bench.plan.trials import pack
from bench.registry import Registry

REGISTRY = Registry.load()
DATA = ROOT / "data"


def test_an_override_stands_above_per_dataset() -> None:
    plain = load_protocol("embedded")
    assert for_dataset(plain, "glyphs").train.epochs == 2
    assert for_dataset(plain, "digits").train.epochs == 10
    changed = load_protocol("embedded", {"train.epochs": 4})
    assert for_dataset(changed, "digits").train.epochs == 4
    only = load_protocol("embedded", {"per_dataset.digits.train.epochs": 3})
    assert (for_dataset(only, "digits").train.epochs, for_dataset(only, "glyphs").train.epochs) == (3, 2)
    assert changed.key == "embedded[train.epochs=4]"
    assert plain.tuned["ewc"]["lam"] == load_protocol("embedded", {"tuned.ewc.form": "online"}).tuned["ewc"]["lam"]


@pytest.mark.parametrize(
    ("key", "value"),
    [("train.epochs", 0), ("train.lr", -1), ("lora.rank", 0), ("adapter", "dora"), ("lora.targets", ["o"]),
     ("train.schedule", "step"), ("threads", 0), ("val_fraction", 1.0), ("head", 3), ("per_dataset.digits.trian", {})],
)  # fmt: skip
def test_values_out_of_range_are_refused(key: str, value: object) -> None:
    with pytest.raises(UserError):
        for_dataset(load_protocol("embedded", {key: value}), "digits")


@pytest.mark.parametrize(
    ("text", "seeds"), [("3", [0, 1, 2]), ("0,1,7", [0, 1, 7]), ("3-5", [3, 4, 5]), ("7,", [7]), ("1-2,9", [1, 2, 9])]
)
def test_seeds(text: str, seeds: list[int]) -> None:
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "0", "-1", "a", "1,1", "5-3", "1.5", "99999999999"])
def test_wrong_seeds(text: str) -> None:
    with pytest.raises(UserError, match="neither a count"):
        parse_seeds(text)


def test_trials_keep_trunk_mates_together_and_fill_the_slots() -> None:
    cells, _ = expand(load_suite("embedded"), Registry.load(), ROOT / "data", [])
    for slots in (1, 2, 8, 64):
        trials = pack(cells, slots)
        assert sorted(c.id for t in trials for c in t) == sorted(c.id for c in cells)
        place = {c.id: i for i, trial in enumerate(trials) for c in trial}
        for a in cells:
            for b in cells:
                if a.chain_is_shared and a.train_keys == b.train_keys:
                    assert place[a.id] == place[b.id]
    assert len(pack(cells, 1)) == 12  # a stream a trial
    assert len(pack(cells, 64)) > 64


def test_shipped_suites_resolve(tmp_path: Path) -> None:
    registry = Registry.load()
    for file in sorted((ROOT / "suites").glob("*.yaml")):
        suite = load_suite(str(file))
        here = [name for name in suite.datasets if availability(load_dataset_config(name, []), ROOT / "data") is None]
        if here:
            assert expand(suite.model_copy(update={"datasets": here}), registry, ROOT / "data", [])[0]


def cells_of(methods: list[str], protocol: str | list[str] = "embedded", **changes: object) -> list[Cell]:
    suite = SuiteConfig(
        key="x", protocol=protocol, datasets=["digits"], tasks=[2], methods=methods, seeds="1", **changes
    )
    return expand(suite, REGISTRY, ROOT / "data", [])[0]


def written(folder: Path, name: str, text: str) -> str:
    (folder / f"{name}.yaml").write_text(text)
    return str(folder / f"{name}.yaml")


# ---- a protocol over its base --------------------------------------------------------------------------------------
def test_mappings_are_laid_over_the_base_key_by_key() -> None:
    base = {"a": {"b": 1, "c": [1, 2]}, "d": 1}
    assert merged(base, {"a": {"c": [3]}, "d": {"e": 2}}) == {"a": {"b": 1, "c": [3]}, "d": {"e": 2}}
    assert base == {"a": {"b": 1, "c": [1, 2]}, "d": 1}


def test_a_chain_of_bases(tmp_path: Path) -> None:
    middle = "title: Middle\nabout: words\nbase: embedded\ntrain: {lr: 0.5}\nper_dataset: {glyphs: {train: {lr: 0.7}}}"
    written(tmp_path, "middle", middle)
    found = load_protocol(
        written(tmp_path, "mine", "title: Mine\nbase: middle.yaml\nlora: {rank: 2}\ninferred: [lora.rank, train]")
    )
    plain = load_protocol("embedded")
    assert (found.key, found.title, found.about, found.base) == ("mine", "Mine", "", "middle.yaml")
    assert found.train == plain.train.model_copy(update={"lr": 0.5})
    assert (found.lora.rank, found.lora.targets, found.backbone) == (2, plain.lora.targets, plain.backbone)
    assert for_dataset(found, "glyphs").train.lr == 0.7
    assert for_dataset(found, "digits").train.epochs == 10


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("base: embeded", "base: unknown protocol 'embeded'; did you mean 'embedded'"),
        ("base: nowhere.yaml", "base: no such file"),
        ("base: bad.yaml", "bad > bad is a circle"),
        ("base: 3", "base: expected the name"),
        ("base: embedded\ntrian: {lr: 1}", "unknown key 'trian'; did you mean 'train'"),
        ("base: embedded\ntrain: {lr: -1}", "train.lr: Input should be greater than 0 (found -1)"),
        ("base: embedded\ntrain: 3", "train: "),
        ("base: embedded\ninferred: [train.lrr]", "inferred: unknown key 'train.lrr'; did you mean 'train.lr'"),
        ("base: embedded\nper_dataset: {digits: {train: {lrr: 1}}}", "per_dataset.digits: unknown key 'train.lrr'"),
        ("base: embedded\nper_method: {pm: {option: {eps: 1}}}", "per_method.pm: unknown key 'option.eps'"),
        ("base: embedded\nper_method: {pm: {title: x}}", "per_method.pm: title is one for the whole protocol"),
    ],
)
def test_a_wrong_protocol_file_is_named_with_its_key(tmp_path: Path, text: str, told: str) -> None:
    file = written(tmp_path, "bad", f"title: x\n{text}")
    with pytest.raises(UserError) as error:
        load_protocol(file)
    assert str(error.value).startswith(file)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_a_title_is_not_inherited(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="title: missing"):
        load_protocol(written(tmp_path, "bad", "base: embedded"))


def test_what_identifies_a_cell_is_the_merged_content(tmp_path: Path) -> None:
    over = written(tmp_path, "over", "title: x\nbase: embedded\ninferred: [train.lr]\ntrain: {lr: 0.5}")
    (mine,), (by_hand,) = cells_of(["pm"], over), cells_of(["pm"], protocol_set={"train.lr": [0.5]})
    assert mine.id.rpartition("-")[2] == by_hand.id.rpartition("-")[2]
    assert mine.train_keys == by_hand.train_keys


# ---- the protocol as an axis of the grid ---------------------------------------------------------------------------
def test_alternatives_are_cut_at_commas_outside_of_brackets() -> None:
    told = ["lora.rank=4,10", "lora.targets=[k],[k,v]", "per_dataset={}", 'a="x,y",z', "b={c: [1, 2], d: 3}", "e=null"]
    assert alternatives(told) == {
        "lora.rank": [4, 10], "lora.targets": [["k"], ["k", "v"]], "per_dataset": [{}], "a": ["x,y", "z"],
        "b": [{"c": [1, 2], "d": 3}], "e": [None],
    }  # fmt: skip
    with pytest.raises(UserError, match="a is named twice"):
        alternatives(["a=1", "a=2"])


def test_settings_multiply_and_equal_protocols_collapse() -> None:
    grid = {"lora.rank": [4, 8, 4], "train.lr": [0.01, 0.02]}
    cells = cells_of(["average"], protocol_set=grid)
    keys = [cell.protocol.key for cell in cells]
    rank, lr = (
        "lora.rank=4",
        "train.lr=0.02",
    )  # 8 and 0.01 are what embedded has: naming them would give a row two names
    assert keys == [f"embedded[{rank}]", f"embedded[{rank},{lr}]", "embedded", f"embedded[{lr}]"]
    assert {cell.protocol.variant_of for cell in cells} == {"embedded", None}
    both = cells_of(["average"], ["embedded", "embedded"], protocol_set=grid)
    assert [cell.id for cell in both] == [cell.id for cell in cells]
    for cell in cells:
        again = cell_of(cell.request, REGISTRY, [], DATA)
        assert (again.id, again.train_keys, again.protocol) == (cell.id, cell.train_keys, cell.protocol)


def test_the_plan_names_the_protocols(tmp_path: Path) -> None:
    cells = cells_of(["average", "ewc"], protocol_set={"lora.rank": [2, 4]})
    plan = make_plan(cells, {}, tmp_path, DATA, Store(tmp_path / "cache"))
    said = describe(plan, load_suite("embedded"), tmp_path, 1)
    assert "4 cells: digits T=2; 2 methods, 1 repeat, protocols embedded[lora.rank=2], embedded[lora.rank=4]" in said


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"adapter": "full", "lora.rank": 4}, "lora.rank: adapter is full, so nothing reads it"),
        ({"adapter": "frozen", "lora.modules": "fc1"}, "lora.modules: adapter is frozen, so nothing reads it"),
        ({"lora.modules": "fc1("}, "lora.modules: Value error, not a regular expression"),
        ({"lora.modules": "fc1", "lora.targets": ["k"]}, "lora: Value error, give either targets or modules"),
        ({"base": "pm"}, "base: write a protocol file"),
        ({"class_order": [0, 1]}, "class_order: 2 classes are listed"),
        ({"class_order": "random"}, "class_order: Input should be 'mt19937', 'pcg64' or 'identity'"),
        ({"image.size": 16}, "image.mean: missing"),
        ({"head.kind": "zero_shot"}, "head.text: missing"),
        ({"train.schedule": "multistep"}, "train.milestones: missing"),
        ({"train.warmup_steps": "some"}, "train.warmup_steps: "),
    ],
)
def test_settings_that_contradict_each_other(changes: dict[str, object], told: str) -> None:
    with pytest.raises(UserError) as error:
        cells_of(["pm"], protocol_set={key: [value] for key, value in changes.items()})
    assert told in str(error.value)


def test_methods_that_a_protocol_rules_out() -> None:
    with pytest.raises(UserError, match="adapter: full has no LoRA factor"):
        cells_of(["lora_fixed_a"], protocol_set={"adapter": ["full"]})
    with pytest.raises(UserError, match="adapter: frozen has no LoRA factor"):
        cells_of(["lora_fixed_a"], protocol_set={"adapter": ["frozen"]})
    with pytest.raises(UserError, match="serves every task by its own model"):
        cells_of(["experts"], protocol_set={"head.kind": ["ncm"]})


def test_heads_that_are_fitted_afterwards_share_their_trainings() -> None:
    linear, ncm, ridge, wide = cells_of(["average", "average/ncm", "average/ridge"]) + cells_of(
        ["average"], protocol_set={"head.init_std": [0.5]}
    )
    assert linear.train_keys == ncm.train_keys == ridge.train_keys
    assert not set(wide.train_keys.values()) & set(linear.train_keys.values())
    assert (ncm.protocol.head.kind, ncm.protocol.key) == ("ncm", "embedded")
    assert len(pack([linear, ncm, ridge], 64)) == 1


@pytest.mark.parametrize(
    ("key", "value"),
    [("lora.rank", 4), ("lora.modules", "fc1"), ("adapter", "frozen"), ("augment.flip", True), ("train.clip", 1.0), ("train.passes", 2), ("threads", 2),
     ("image", {"size": 16, "channels": 1, "mean": [0.5], "std": [0.5]}), ("class_order", "identity")],
)  # fmt: skip
def test_what_training_depends_on_is_in_its_keys(key: str, value: object) -> None:
    (plain,), (changed,) = cells_of(["average"]), cells_of(["average"], protocol_set={key: [value]})
    assert not set(plain.train_keys.values()) & set(changed.train_keys.values())
    assert plain.id != changed.id


def test_passes_count_as_steps_and_a_long_warm_up_is_told(tmp_path: Path) -> None:
    (plain,), (twice,) = cells_of(["average"]), cells_of(["average"], protocol_set={"train.passes": [2]})
    assert twice.opt_steps() == 2 * plain.opt_steps()
    for steps, warned in ((500, True), ("auto", False)):
        cells = cells_of(["average"], protocol_set={"train.warmup_steps": [steps]})
        said = describe(
            make_plan(cells, {}, tmp_path, DATA, Store(tmp_path / "c")), load_suite("embedded"), tmp_path, 1
        )
        assert ("500 warm-up steps are more than half" in said) is warned


def test_the_disk_that_preparing_takes_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 2**26 + 2_000_000

    cells = cells_of(["average"], protocol_set={"threads": [1]})
    plan = make_plan(cells, {}, tmp_path, DATA, Store(tmp_path / "c"))
    plan.trainings = 0
    monkeypatch.setattr("bench.plan.forecast.shutil.disk_usage", lambda _: Usage)
    preflight(plan, tmp_path, tmp_path)  # 1797 images of 256 bytes
    huge = cells[0].dataset.model_copy(update={"train": 10**6})
    plan.to_run = [
        Cell(
            huge,
            2,
            *(
                getattr(cells[0], n)
                for n in ("protocol", "method", "class_order_seed", "run_seed", "eval_split", "request")
            ),
        )
    ]
    with pytest.raises(UserError, match="GB needed"):
        preflight(plan, tmp_path, tmp_path)


def test_class_orders() -> None:
    assert class_order(50, 3) == class_order(50, 3, "mt19937") == np.random.RandomState(3).permutation(50).tolist()
    shuffled = list(range(50))
    np.random.default_rng(3).shuffle(shuffled)
    assert class_order(50, 3, "pcg64") == shuffled != class_order(50, 4, "pcg64")
    assert class_order(5, 3, "identity") == [0, 1, 2, 3, 4]
    assert class_order(3, 3, [2, 0, 1]) == [2, 0, 1]
    for wrong in ([0, 1], [0, 1, 1], [1, 2, 3], []):
        with pytest.raises(UserError, match="class_order"):
            class_order(3, 0, wrong)
