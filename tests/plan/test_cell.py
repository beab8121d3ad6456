"""What is in a cell's name, its keys and its code, and how a record stands to what is asked today."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from bench.cli import cli
from bench.common.cache import Store
from bench.common.paths import PROTOCOLS
from bench.config.files import load_protocol
from bench.config.schema import ProtocolConfig, SuiteConfig, TrainConfig
from bench.plan.cell import Cell
from bench.plan.grid import expand
from bench.plan.method_protocol import for_method
from bench.plan.standing import standing, standings
from bench.plan.trials import pack
from bench.records.record import Record, Standing, read_records
from bench.registry import Registry, code_hash
from bench.registry.code_hash import code_of_class, code_of_modules
from bench.run.cell import run_cell
from bench.run.workbench import Workbench

REGISTRY = Registry.load()
RULE = "from bench.method import Rule, Task, Weights, rule\n\n\n@rule('mine')\nclass Mine(Rule):\n    def merge(self, t):\n"


def cells(
    data: Path, protocol: str = "embedded", dataset: str = "digits", methods: str = "average", **more: object
) -> list[Cell]:
    suite = SuiteConfig(
        key="t", protocol=protocol, datasets=[dataset], tasks=[2], methods=methods.split(), seeds="1",
        protocol_set={key: [value] for key, value in more.items()},
    )  # fmt: skip
    return expand(suite, REGISTRY, data, [])[0]


def clmerge(*arguments: str | Path) -> str:
    done = CliRunner().invoke(cli, [str(a) for a in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


# ---- code ------------------------------------------------------------------------------------------------------------
def test_where_code_stands_and_what_it_is_called_from_is_in_no_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(code_hash, "ROOT", tmp_path)
    (tmp_path / "bench" / "deeper").mkdir(parents=True)

    def hashed(**files: str) -> str:
        code_of_modules.cache_clear()
        for name, text in files.items():
            (tmp_path / "bench" / name.replace("__", "/")).with_suffix(".py").write_text(text)
        return code_of_modules(*(f"{name.replace('__', '/')}.py" for name in files))

    f, g = "def f(x):\n    return x + 1\n", "def g(x):\n    return x * 2\n"
    first = hashed(one=f, two=g)
    assert hashed(deeper__one=f, two=g) == first  # a moved file
    assert hashed(one=f + g, two="") == first  # a moved function
    assert hashed(one="from there import h\nimport os\n__all__ = ['f']\n" + f, two=g) == first
    assert hashed(one="def f(x):\n    '''Doc.'''\n    from here import x as x\n    return x + 1\n", two=g) == first
    assert hashed(one=f.replace("+ 1", "+ 2"), two=g) != first
    code_of_modules.cache_clear()


def test_a_tool_counts_for_the_plugins_that_import_it_and_for_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    rules = REGISTRY.rules
    before = {key: code_of_class(cls) for key, cls in rules.items()}
    plain = code_hash._parsed

    def edited(path: Path) -> object:
        tree = plain(path)
        if path.name != "sparsify.py":
            return tree
        return code_hash.ast.parse(code_hash.ast.unparse(tree) + "\nEDITED = 1\n")

    monkeypatch.setattr(code_hash, "_parsed", edited)
    changed = {key for key, cls in rules.items() if code_of_class(cls) != before[key]}
    assert {"dare", "ties"} <= changed
    assert not {"regmean", "opcm", "average", "pm"} & changed


def test_modules_beside_a_plugin_count_and_other_packages_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "my_plugin_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "shares.py").write_text("HALF = 0.5\n")
    plugin = package / "mine.py"
    plugin.write_text(
        "from my_plugin_package.shares import HALF\nimport scipy\n" + RULE + "        return t.trained * HALF\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    first = code_of_class(Registry.load([plugin]).rules["mine"])
    (package / "shares.py").write_text("HALF = 0.25\n")
    assert code_of_class(Registry.load([plugin]).rules["mine"]) != first


# ---- names and keys --------------------------------------------------------------------------------------------------
def test_a_field_more_with_a_default_changes_no_name_and_no_key(tmp_path: Path) -> None:
    class WiderTrain(TrainConfig):
        momentum: float = 0.9

    class WiderProtocol(ProtocolConfig):
        train: WiderTrain
        rehearsed: bool = False

    (cell,) = cells(tmp_path)
    data = cell.protocol.model_dump()
    (same, other) = (
        Cell(cell.dataset, 2, WiderProtocol.model_validate(told), cell.method, 0, 0, "test", {})
        for told in (data, {**data, "rehearsed": True})
    )
    assert (same.id, same.train_keys) == (cell.id, cell.train_keys)
    assert other.id != cell.id


def test_one_protocol_spelled_two_ways_is_one(tmp_path: Path) -> None:
    pairs: list[tuple[str, list[object]]] = [
        ("train.lr", ["2e-3", 0.002, "0.0020"]), ("train.weight_decay", ["5e-5", 5.0e-5]), ("tuned.ewc.lam", [3, "3.0", 3.0]),
        ("lora.targets", [["k"], ("k",)]),
    ]  # fmt: skip
    for key, values in pairs:
        protocols = [load_protocol("embedded", {key: value}) for value in values]
        assert len({protocol.key for protocol in protocols}) == 1, key
    one, two = (cells(tmp_path, **{"train.lr": value})[0] for value in ("2e-3", 0.002))
    assert (one.id, one.coordinates()) == (two.id, two.coordinates())


def test_weights_are_named_by_what_is_in_the_file(tmp_path: Path) -> None:
    tensors = load_file(PROTOCOLS / "embedded_vit.safetensors")

    def written(name: str, scale: float) -> str:
        save_file({k: v * scale for k, v in tensors.items()}, tmp_path / f"{name}.safetensors")
        file = tmp_path / f"{name}.yaml"
        file.write_text(
            f"title: mine\nkey: mine\nbase: embedded\nbackbone: {{weights: {tmp_path / name}.safetensors, sha256: null}}\n"
        )
        return str(file)

    (one,), (same,), (other,) = (cells(tmp_path, written(*each)) for each in (("a", 1.0), ("b", 1.0), ("c", 0.5)))
    assert (one.id, one.train_keys) == (same.id, same.train_keys)  # where it lies does not matter
    assert one.id != other.id
    assert not set(one.train_keys.values()) & set(other.train_keys.values())


def test_only_the_adapter_in_use_is_in_a_cells_name_and_keys(tmp_path: Path) -> None:
    for name, lora in (("low", "{rank: 2}"), ("high", "{rank: 16, targets: [q]}")):
        (tmp_path / f"{name}.yaml").write_text(f"title: Mine\nkey: mine\nbase: embedded\nlora: {lora}\n")
    low, high = (str(tmp_path / f"{name}.yaml") for name in ("low", "high"))
    for adapter, equal in (("lora", False), ("full", True), ("frozen", True)):
        (one,), (other,) = (cells(tmp_path, protocol, adapter=adapter) for protocol in (low, high))
        assert (one.id == other.id) is equal
        assert (one.train_keys == other.train_keys) is equal


def test_editing_one_adapter_makes_no_training_under_another_stale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trained() -> dict[str, str]:
        code_of_modules.cache_clear()
        return {a: cells(tmp_path, adapter=a)[0].code()["train"] for a in ("lora", "full", "frozen")}

    before, plain = trained(), code_hash._parsed

    def edited(path: Path) -> object:
        tree = plain(path)
        return tree if path.name != "lora.py" else code_hash.ast.parse(code_hash.ast.unparse(tree) + "\nEDITED = 1\n")

    monkeypatch.setattr(code_hash, "_parsed", edited)
    after = trained()
    code_of_modules.cache_clear()
    assert {adapter for adapter in before if after[adapter] != before[adapter]} == {"lora"}


# ---- how records stand -----------------------------------------------------------------------------------------------
@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CLMERGE_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("CLMERGE_DATA", str(tmp_path / "data"))
    return tmp_path


def run(*more: str) -> str:
    return clmerge("run", "--executor", "local", "--tasks", "2", "--seeds", "2", "--methods", "linear_probe", *more)


def standing_of(place: Path) -> dict[str, str]:
    found = standings(read_records(place / "results"), REGISTRY, [], place / "data")
    return {cell_id: each.why for cell_id, each in found.items()}


def test_records_of_an_edited_protocol_are_named_and_never_averaged_with_the_new_ones(place: Path) -> None:
    protocol = place / "mine.yaml"
    text = "title: Mine\nbase: embedded\nper_dataset: {digits: {train: {epochs: 1, lr: %s}}}\n"
    protocol.write_text(text % 0.01)
    run("--datasets", "digits", "--protocol", "mine.yaml")
    protocol.write_text(text % 0.02)
    plan = clmerge(
        "plan",
        "--tasks",
        "2",
        "--seeds",
        "2",
        "--methods",
        "linear_probe",
        "--datasets",
        "digits",
        "--protocol",
        "mine.yaml",
    )
    assert "2 to run" in plan
    assert "2 outdated, not counted" in plan
    assert "its protocol has changed since: train.lr was 0.01, is 0.02" in plan
    run("--datasets", "digits", "--protocol", "mine.yaml")
    assert len(read_records(place / "results")) == 4
    assert len(standing_of(place)) == 2

    report = place / "report.yaml"
    report.write_text("title: Mine\nprotocol: mine\n")
    clmerge("report", "--report", report, "--out", place / "out")
    table = (place / "out" / "table.md").read_text()
    assert "outdated 2/4" in table
    assert "2 (c0-r0, c1-r1) of linear_probe: its protocol has changed since: train.lr was 0.01, is 0.02" in table
    (line,) = (line for line in table.splitlines() if line.startswith("| linear_probe"))
    assert line.split("|")[3].strip() == "2"  # n: two repeats, not four
    assert "outdated" in (place / "out" / "index.html").read_text()
    rows = clmerge("results", "--csv", "-").splitlines()
    assert sum(",outdated," in row for row in rows) == 2


def test_a_replaced_file_of_weights_makes_another_cell_and_its_old_record_outdated(place: Path) -> None:
    weights = place / "my_vit.safetensors"
    shutil.copy(PROTOCOLS / "embedded_vit.safetensors", weights)
    (place / "mine.yaml").write_text(
        f"title: Mine\nbase: embedded\nbackbone: {{weights: {weights}, sha256: null}}\nper_dataset: {{digits: {{train: {{epochs: 1}}}}}}\n"
    )
    run("--datasets", "digits", "--protocol", "mine.yaml")
    tensors = load_file(weights)
    save_file({name: x * 0.5 for name, x in tensors.items()}, weights)
    again = run("--datasets", "digits", "--protocol", "mine.yaml")
    assert "2 to run" in again
    assert "the file of its backbone's weights has changed since" in again
    assert len({record["digest"] for record in read_records(place / "results")}) == 2  # a frozen backbone: its weights


def arrays(place: Path) -> None:
    rng = np.random.default_rng(1)
    y = np.repeat(np.arange(4), 20)
    x = (rng.integers(0, 60, (80, 16, 16)) + 60 * y[:, None, None]).astype(np.uint8)
    np.savez(place / "my.npz", x_train=x[::2], y_train=y[::2], x_test=x[1::2], y_test=y[1::2])
    (place / "my.yaml").write_text(
        f"title: My arrays\nlayout: arrays\noptions: {{path: {place / 'my.npz'}}}\nclasses: 4\ntrain: {len(y[::2])}\n"
        "test: 40\ntasks: [2]\nimage: {size: 16, channels: 1, mean: [0.5], std: [0.3]}\n"
    )


def test_changed_images_are_prepared_again_and_their_records_are_outdated(place: Path) -> None:
    arrays(place)
    first = run("--datasets", "my.yaml")
    assert "2 to run" in first
    old = {r["id"]: r["dataset"]["digest"] for r in read_records(place / "results")}

    data = dict(np.load(place / "my.npz"))
    data["x_train"] = 255 - data["x_train"]
    np.savez(place / "my.npz", **data)
    assert set(standing_of(place)) == set(old)
    assert "have changed since they were prepared" in next(iter(standing_of(place).values()))
    again = run("--datasets", "my.yaml")
    assert "2 to run" in again
    new = {r["id"]: r["dataset"]["digest"] for r in read_records(place / "results")}
    assert old.keys() == new.keys()
    assert not set(old.values()) & set(new.values())
    assert standing_of(place) == {}

    os.utime(place / "my.npz")  # touched, not changed: what is prepared anew is the same, and nothing is lost
    assert "2 done, 0 to run" in run("--datasets", "my.yaml")


def test_of_two_files_of_one_name_only_one_is_counted(place: Path) -> None:
    for folder, rate in (("a", 0.01), ("b", 0.02)):
        (place / folder).mkdir()
        text = "title: Mine\nbase: embedded\nper_dataset: {digits: {train: {epochs: 1, lr: %s}}}\n"
        (place / folder / "mine.yaml").write_text(text % rate)
        run("--datasets", "digits", "--protocol", f"{folder}/mine.yaml")
    told = standing_of(place)
    assert len(told) == 2
    assert all("stands at the same place and was written later" in why for why in told.values())


def test_a_finished_cell_that_cannot_be_checked_any_more_is_stale_and_says_why(place: Path) -> None:
    protocol = place / "mine.yaml"
    protocol.write_text("title: Mine\nbase: embedded\nper_dataset: {digits: {train: {epochs: 1}}}\n")
    run("--datasets", "digits", "--protocol", "mine.yaml")
    protocol.unlink()
    assert all(
        "it cannot be checked against today's code: protocol: no such file" in why
        for why in standing_of(place).values()
    )
    assert len(standing_of(place)) == 2


def test_records_of_an_older_version_are_outdated(place: Path) -> None:
    run("--datasets", "digits", "--protocol-set", "train.epochs=1")
    for file in (place / "results" / "runs").glob("*/cell.json"):
        record = json.loads(file.read_text())
        folder = file.parent.rename(file.parent.with_name(file.parent.name[:-10] + "0123456789"))
        del record["files"]
        (folder / "cell.json").write_text(json.dumps({**record, "id": folder.name}))
    reasons = standing_of(place).values()
    assert [reason.split(" of clmerge")[0] for reason in reasons] == ["an older version"] * 2


def test_where_the_file_of_weights_is_not_here_a_record_is_counted_and_said_to_be_unchecked(place: Path) -> None:
    weights = place / "my_vit.safetensors"
    shutil.copy(PROTOCOLS / "embedded_vit.safetensors", weights)
    protocol = f"title: Mine\nbase: embedded\nbackbone: {{weights: {weights}, sha256: null}}\n"
    (place / "mine.yaml").write_text(protocol + "per_dataset: {digits: {train: {epochs: 1}}}\n")
    run("--datasets", "digits", "--protocol", "mine.yaml")
    weights.unlink()
    told = standings(read_records(place / "results"), REGISTRY, [], place / "data").values()
    assert [each.status for each in told] == ["stale", "stale"]
    assert all(each.why.endswith("the file of its backbone's weights is not on this machine") for each in told)
    (place / "mine.yaml").write_text(protocol + "per_dataset: {digits: {train: {epochs: 2}}}\n")  # and yet:
    assert all("train.epochs was 1, is 2" in why for why in standing_of(place).values())


def test_a_cell_without_its_file_of_weights_is_no_cell_of_random_weights(tmp_path: Path) -> None:
    (plain,) = cells(tmp_path)
    lost, random = (
        plain.protocol.model_copy(
            update={"backbone": plain.protocol.backbone.model_copy(update={"weights": weights, "sha256": None})}
        )
        for weights in (str(tmp_path / "gone.safetensors"), None)
    )
    ids = {Cell(plain.dataset, 2, p, plain.method, 0, 0, "test", {}).id for p in (plain.protocol, lost, random)}
    assert len(ids) == 3


def test_a_half_done_cell_starts_over_where_its_images_were_replaced(place: Path) -> None:
    def half_done() -> None:
        """One task of two, then an end without a word."""
        (cell,) = cells(place / "data", dataset="my.yaml", methods="finetune", **{"train.epochs": 1})
        bench = Workbench(place / "results", place / "data", Store(place / "results" / "cache"))
        with pytest.raises(KeyboardInterrupt):
            run_cell(cell, bench, progress=_stop_after_the_first_task)

    arrays(place)
    half_done()
    data = dict(np.load(place / "my.npz"))
    data["x_train"] = 255 - data["x_train"]
    np.savez(place / "my.npz", **data)
    words = [
        "--datasets",
        "my.yaml",
        "--tasks",
        "2",
        "--seeds",
        "1",
        "--methods",
        "finetune",
        "--protocol-set",
        "train.epochs=1",
    ]
    clmerge("run", "--executor", "local", *words)
    clmerge("run", "--executor", "local", *words, "--results", place / "fresh", "--data", place / "fresh_data")
    (resumed,), (fresh,) = read_records(place / "results"), read_records(place / "fresh")
    assert (resumed["counts"], resumed["digest"]) == (fresh["counts"], fresh["digest"])
    assert [t["trained_digest"] for t in resumed["tasks"]] == [t["trained_digest"] for t in fresh["tasks"]]


def _stop_after_the_first_task(beat: dict) -> None:
    if beat["phase"] == "training" and beat["task"] == 2:
        raise KeyboardInterrupt


def test_a_record_with_an_older_default_of_its_head_is_outdated_and_those_of_other_heads_are_not(
    tmp_path: Path,
) -> None:
    """2,000 random features were the default once; no record of that time says so but in its protocol."""
    for cell in cells(tmp_path, methods="average average/ncm average/ridge average/ridge:projection=2000"):
        told = cell.protocol_told()
        told["head"] = told["head"] | {"projection": 2000}
        record: Record = {
            "id": cell.id, "status": "done", "files": cell.files_digest, "protocol": told, "code": cell.code(),
            "method": cell.method.describe(), "dataset": {"digest": None},
        }  # fmt: skip
        found = standing(record, cell, tmp_path)
        if cell.method.variant.endswith("/ridge"):
            assert found == Standing("outdated", "its protocol has changed since: head.projection was 2000, is 10000")
        else:
            assert found == Standing("done")


def test_the_new_default_of_a_head_has_a_name_of_its_own_and_no_other_name_changes(tmp_path: Path) -> None:
    ids = [cell.id[-10:] for cell in cells(tmp_path, methods="average@merged average@merged/ncm average@merged/ridge")]
    older = ["fd002269fd", "bf6db7e31b", "abd652558f"]
    assert ids[:2] == older[:2]
    assert ids[2] != older[2]
    [set_by_hand] = cells(tmp_path, methods="average@merged/ridge", **{"head.projection": 10_000})
    assert set_by_hand.id[-10:] == ids[2]
    [smaller] = cells(tmp_path, methods="average@merged/ridge", **{"head.projection": 2000})
    assert smaller.id[-10:] not in (ids[2], older[2])


def test_heads_differ_in_nothing_that_a_training_is_made_of(tmp_path: Path) -> None:
    names = ("", "/linear", "/refit", "/align", "/ncm", "/ncm_both", "/lda", "/ridge", "/ridge:projection=50")
    of = cells(tmp_path, methods=" ".join(f"average@merged{name}" for name in names))
    assert len({cell.id for cell in of}) == len(names)
    assert len({json.dumps(cell.train_keys) for cell in of}) == 1
    heads = [cell.code().get("head") for cell in of]
    assert heads[:2] == [None, None]
    assert heads[4] == heads[5] != heads[6]
    assert len({cell.code()["method"] for cell in of}) == 1
    [trial] = pack(of, 1)
    assert all(cell.keep_trainings and cell.chain_is_shared for cell in trial)
    [[alone]] = pack(of[:1], 1)
    assert not alone.chain_is_shared


def test_an_entry_of_a_method_is_found_under_a_head_with_options(tmp_path: Path) -> None:
    entry = {"per_method": {"ties": {"options": {"density": 0.4}}}}
    for spelling in ("ties@pretrained/ridge:projection=50", "ties@pretrained/ridge:head.projection=50"):
        asked = for_method(REGISTRY, load_protocol("embedded", entry), {}, spelling)
        assert (asked.method.rule_options["density"], asked.protocol.head.projection) == (0.4, 50)
        assert asked.entry == "ties"


def test_where_heads_alone_are_trained_a_key_says_so(tmp_path: Path) -> None:
    """Another class order may bring the same task first: there the backbone is adapted to it."""
    first, plain = cells(tmp_path, methods="first_session+first@pretrained plain+first@pretrained")
    swapped = dataclasses.replace(first)
    vars(swapped)["cuts"] = [
        dataclasses.replace(cut, t=t, columns=columns)
        for cut, t, columns in zip(first.cuts[::-1], (1, 2), (range(5), range(5, 10)), strict=True)
    ]
    assert swapped.cuts[0].classes == first.cuts[1].classes
    assert swapped.train_keys[1] != first.train_keys[2]
    vars(other := dataclasses.replace(plain))["cuts"] = swapped.cuts
    assert other.train_keys[1] == plain.train_keys[2]  # plain training is the same wherever it stands
