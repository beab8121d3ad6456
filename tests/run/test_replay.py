"""Task models from elsewhere: replayed they give what the run gave, and a mistake in a folder costs one line."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from torch import Tensor

from bench.cli import cli
from bench.common.paths import ROOT
from bench.config.files import load_dataset_config, load_protocol, weights_file
from bench.data.dataset import load_dataset
from bench.plan.standing import standings
from bench.records.record import read_records
from bench.registry import Registry

TINY = ["--protocol-set", "train.epochs=1", "--protocol-set", "per_dataset={}", "--executor", "local", "--quiet"]


def clmerge(*arguments: str, results: Path) -> Any:
    return CliRunner().invoke(cli, [*arguments, "--results", str(results), "--data", str(ROOT / "data")])


def rows(results: Path) -> dict[str, dict[str, Any]]:
    told = clmerge("results", "--json", results=results)
    return {row["variant"]: row for row in json.loads(told.stdout)}


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks of digits under four methods, weights kept."""
    results = tmp_path_factory.mktemp("ran")
    methods = "average last@previous pm_alpha@merged task_arithmetic@merged"
    done = clmerge("run", "--datasets", "digits", "--tasks", "2", "--seeds", "1", "--methods", methods,
                   "--keep-weights", *TINY, results=results)  # fmt: skip
    assert done.exit_code == 0, done.output
    return results


def weights_of(results: Path, rule: str) -> Path:
    for folder in (results / "runs").iterdir():
        if json.loads((folder / "cell.json").read_text())["method"]["rule"]["key"] == rule:
            return folder / "weights"
    raise AssertionError(rule)


@pytest.mark.parametrize("rule", ["average", "last", "pm_alpha", "task_arithmetic"])
def test_a_kept_run_replayed_gives_its_bits_and_counts(ran: Path, tmp_path: Path, rule: str) -> None:
    done = clmerge("replay", str(weights_of(ran, rule)), "--methods", rule, results=tmp_path)
    assert done.exit_code == 0, done.output
    (again,) = rows(tmp_path).values()
    (first,) = (row for variant, row in rows(ran).items() if f"+{rule}@" in variant)
    assert again["variant"] == first["variant"].replace("plain+", "given+")
    for name in ("digest", "a_last", "avg_acc", "forgetting", "a_last_taskaware", "merge_drop", "carried_bytes"):
        assert again[name] == first[name], name
    assert again["train_s_alone"] == again["opt_steps"] == 0
    assert again["status"] == "done"  # and not stale


def test_a_replay_is_resumed_skipped_and_another_rule_is_another_cell(ran: Path, tmp_path: Path) -> None:
    folder = str(weights_of(ran, "average"))
    assert clmerge("replay", folder, "--methods", "average", results=tmp_path).exit_code == 0
    before = {p: p.stat().st_mtime_ns for p in tmp_path.glob("runs/*/cell.json")}
    done = clmerge("replay", folder, "--methods", "average task_arithmetic:lam=0.5", results=tmp_path)
    assert done.exit_code == 0
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert set(rows(tmp_path)) == {"given+average@pretrained", "given+task_arithmetic@pretrained:lam=0.5"}
    assert "clmerge run digits-T2" in done.output  # where the weights are from


def a_last_by_timm_alone(folder: Path, weights: Path) -> float:
    """Percent right among all classes, with nothing of ours but the dataset's arrays."""
    config, told = load_dataset_config("digits", []), yaml.safe_load((folder / "replay.yaml").read_text())
    model = timm.create_model(told["backbone"]["model"], num_classes=0, **told["backbone"]["options"]).eval()
    model.load_state_dict(load_file(weights))
    heads = [load_file(folder / f"head_{t}.safetensors") for t in (1, 2)]
    weight, bias = (torch.cat([head[name] for head in heads]) for name in ("weight", "bias"))
    dataset = load_dataset(config, ROOT / "data")
    x = (torch.from_numpy(dataset.test_images.copy()).float() / 255 - config.image.mean[0]) / config.image.std[0]
    with torch.inference_mode():
        columns = (model(x) @ weight.T + bias).argmax(1)
    order = torch.tensor([label for task in told["tasks"] for label in task])
    right = (order[columns] == torch.from_numpy(dataset.test_labels.copy())).sum()
    return 100 * int(right) / len(x)


def test_timm_alone_reads_what_was_served_and_counts_the_same(ran: Path) -> None:
    folder = weights_of(ran, "average")
    served = a_last_by_timm_alone(folder, folder / "served_2.safetensors")
    assert served == pytest.approx(rows(ran)["plain+average@pretrained"]["a_last"])


@pytest.mark.parametrize("rule", ["average", "ties:density=0.3"])
def test_two_files_of_a_run_merged_from_the_shell_are_what_the_rule_serves(
    ran: Path, tmp_path: Path, rule: str
) -> None:
    folder, merged = weights_of(ran, "average"), tmp_path / "merged.safetensors"
    tasks = [str(folder / f"task_{t}.safetensors") for t in (1, 2)]
    # TIES trims a share of what it is given, and a run gives it only what LoRA adapts: q, k and v are one tensor to timm.
    base = str(folder / "pretrained.safetensors")
    words = ["--method", rule, "--pretrained", base, "--tasks", *tasks, "-o", str(merged)]
    done = CliRunner().invoke(cli, ["merge", *words])
    assert done.exit_code == 0, done.output
    a_last = a_last_by_timm_alone(folder, merged)
    if rule == "average":
        expected = load_file(folder / "served_2.safetensors")
        assert all(torch.equal(x, expected[name]) for name, x in load_file(merged).items())
        assert a_last == pytest.approx(rows(ran)["plain+average@pretrained"]["a_last"])
    else:
        assert 10 < a_last < 100


# ---- ten lines of timm and PEFT, and nothing of ours --------------------------------------------------------------
SCRIPT = """
import sys, timm, torch, peft
from safetensors.torch import load_file, save_file
out, weights, options, images, labels = sys.argv[1], sys.argv[2], *torch.load(sys.argv[3], weights_only=True)
for t, classes in enumerate([[7, 1, 4], [0, 9]], 1):
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, **options)
    model.load_state_dict(load_file(weights))
    save_file(model.state_dict(), f"{out}/pretrained.safetensors")
    model = peft.get_peft_model(model, peft.LoraConfig(r=2, lora_alpha=4, target_modules=["qkv"]))
    head = torch.nn.Linear(64, len(classes))
    optimiser = torch.optim.AdamW([*model.parameters(), *head.parameters()], lr=0.01)
    mine = torch.isin(labels, torch.tensor(classes))
    y = torch.tensor([classes.index(c) for c in labels[mine].tolist()])
    for step in range(8):
        loss = torch.nn.functional.cross_entropy(head(model(images[mine])), y)
        optimiser.zero_grad(); loss.backward(); optimiser.step()
    model.save_pretrained(f"{out}/task_{t}")
    save_file(head.state_dict(), f"{out}/head_{t}.safetensors")
    with torch.inference_mode():
        print(int((head(model.eval()(images[mine])).argmax(1) == y).sum()), int(mine.sum()))
"""


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[int]]]:
    """A folder written by the script above, and (right, images) of each expert with its own head."""
    folder = tmp_path_factory.mktemp("foreign")
    config, protocol = load_dataset_config("digits", []), load_protocol("embedded")
    dataset = load_dataset(config, ROOT / "data")
    x = (torch.from_numpy(dataset.test_images.copy()).float() / 255 - config.image.mean[0]) / config.image.std[0]
    torch.save([dict(protocol.backbone.options), x, torch.from_numpy(dataset.test_labels.copy())], folder / "in.pt")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder), str(weights_file(protocol)), str(folder / "in.pt")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (folder / "in.pt").unlink()
    told = {"dataset": "digits", "source": "ten lines of timm and PEFT", "tasks": [[7, 1, 4], [0, 9]],
            "backbone": {"model": "vit_tiny_patch16_224", "options": dict(protocol.backbone.options)}}  # fmt: skip
    (folder / "replay.yaml").write_text(yaml.safe_dump(told))
    return folder, [[int(n) for n in line.split()] for line in done.stdout.splitlines()]


def test_peft_adapters_replay_as_peft_itself_evaluates_them(foreign: tuple[Path, Any], tmp_path: Path) -> None:
    folder, alone = foreign
    done = clmerge("replay", str(folder), "--methods", "average last experts", results=tmp_path)
    assert done.exit_code == 0, done.output
    records = {
        record["method"]["rule"]["key"]: record
        for record in (json.loads(p.read_text()) for p in tmp_path.glob("runs/*/cell.json"))
    }
    assert records["experts"]["counts"][-1] == alone  # each model on its own task, the task given
    assert records["last"]["before_merge_taskaware"] == alone
    assert records["last"]["digest"] != records["average"]["digest"]
    assert records["average"]["coordinates"]["protocol"] == f"replay-{folder.name}"
    assert "train" not in records["average"]["protocol"]  # we know nothing of how they were trained
    assert "ten lines of timm and PEFT" in done.output


def test_a_folder_with_other_weights_is_another_cell_and_the_old_record_is_outdated(ran: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    shutil.copytree(weights_of(ran, "average"), folder)
    clmerge("replay", str(folder), "--methods", "average", results=tmp_path / "r")
    (before,) = read_records(tmp_path / "r")
    edit_file("task_2.safetensors", lambda tensors: {k: v * 1.1 for k, v in tensors.items()})(folder)
    ((cell_id, standing),) = standings(read_records(tmp_path / "r"), Registry.load(), [], ROOT / "data").items()
    assert (cell_id, standing) == (before["id"], ("outdated", "the files of its folder have changed since"))
    done = clmerge("replay", str(folder), "--methods", "average", "--json", results=tmp_path / "r")
    (row,) = json.loads(done.stdout)
    records = {record["id"]: record["digest"] for record in read_records(tmp_path / "r")}
    assert len(records) == 2
    assert row["digest"] != before["digest"]


# ---- mistakes -------------------------------------------------------------------------------------------------------
def edit_yaml(**changes: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        told = yaml.safe_load((folder / "replay.yaml").read_text()) | changes
        (folder / "replay.yaml").write_text(yaml.safe_dump({k: v for k, v in told.items() if v is not None}))

    return edit


def edit_file(name: str, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Callable[[Path], None]:
    return lambda folder: save_file(change(load_file(folder / name)), folder / name)


MISTAKES: dict[str, tuple[Callable[[Path], Any], str, str]] = {
    "no yaml": (lambda f: (f / "replay.yaml").unlink(), "average", "no replay.yaml there"),
    "misspelt key": (edit_yaml(strat="merged"), "average", "unknown key 'strat'; did you mean 'start'"),
    "no tasks": (edit_yaml(tasks=None), "average", "give either tasks"),
    "label twice": (edit_yaml(tasks=[[0, 1], [1, 2]]), "average", "a label is in two tasks"),
    "label too high": (edit_yaml(tasks=[[0, 1, 2, 3, 4], [5, 6, 7, 8, 10]]), "average", "classes 0 to 9"),
    "no model": (lambda f: (f / "pretrained.safetensors").unlink(), "average", "no pretrained.safetensors"),
    "a task missing": (lambda f: (f / "task_1.safetensors").unlink(), "average", "no task_1.safetensors"),
    "a task too many": (lambda f: shutil.copy(f / "task_1.safetensors", f / "task_3.safetensors"), "average",
                        "task_3 has no place"),
    "a head missing": (lambda f: (f / "head_2.safetensors").unlink(), "average", "no head_2.safetensors"),
    "a head of another size": (edit_file("head_2.safetensors", lambda h: {n: x[:3].clone() for n, x in h.items()}),
                               "average", "head_2.safetensors: holds"),
    "no starts": (edit_yaml(start="merged"), "average", "start_2.safetensors must say"),
    "a head not finite": (edit_file("head_2.safetensors", lambda h: {n: x / 0 for n, x in h.items()}), "average",
                          "head_2.safetensors: tensor"),
    "a base not finite": (
        edit_file("pretrained.safetensors", lambda w: w | {n: x / 0 for n, x in w.items() if n.endswith("qkv.weight")}),
        "average", "pretrained.safetensors: tensor",
    ),
    "not finite": (edit_file("task_2.safetensors", lambda w: {n: x / 0 for n, x in w.items()}), "average",
                   "values that are not finite"),
    "foreign tensor": (edit_file("task_2.safetensors", lambda w: {"blocks.9.x": torch.zeros(2), **w}), "average",
                       "'blocks.9.x' is not in the pretrained model"),
    "another shape": (edit_file("task_1.safetensors", lambda w: {**w, "fc_norm.bias": torch.zeros(3)}), "average",
                      "'fc_norm.bias' has shape (3,)"),
    "truncated": (lambda f: (f / "task_1.safetensors").write_bytes((f / "task_1.safetensors").read_bytes()[:999]),
                  "average", "task_1.safetensors: not a readable safetensors file"),
    "nothing trained": (lambda f: [shutil.copy(f / "pretrained.safetensors", f / f"task_{t}.safetensors")
                                   for t in (1, 2)], "average", "nothing was trained"),
    "unknown dataset": (edit_yaml(dataset="digit"), "average", "unknown dataset 'digit'; did you mean 'digits'"),
    "unknown model": (edit_yaml(backbone={"model": "vit_tinny_patch16_224"}), "average",
                      "did you mean 'vit_tiny_patch16_224'"),
    "another start": (lambda f: None, "average@merged", "leave @merged out"),
    "unknown rule": (lambda f: None, "averge", "unknown method 'averge'; did you mean 'average'"),
    "an option of training": (lambda f: None, "pm:eps=1", "unknown option of 'pm_alpha' 'eps'"),
    "needs the trajectory": (lambda f: None, "trm", "needs snapshots:4 of training"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_a_folder_costs_one_line_and_nothing_is_written(ran: Path, tmp_path: Path, name: str) -> None:
    spoil, methods, said = MISTAKES[name]
    folder = tmp_path / "folder"
    shutil.copytree(weights_of(ran, "average"), folder)
    spoil(folder)
    done = clmerge("replay", str(folder), "--methods", methods, results=tmp_path / "results")
    assert done.exit_code == 2, done.output
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.output
    assert not (tmp_path / "results").exists()


def test_keeping_weights_of_joint_training_is_refused(tmp_path: Path) -> None:
    done = clmerge("run", "--datasets", "digits", "--methods", "joint", "--keep-weights", *TINY, results=tmp_path)
    assert done.exit_code == 2
    assert "'joint' has no task models to keep" in done.stderr


def test_a_done_cell_without_its_weights_is_run_again_when_they_are_asked_for(tmp_path: Path) -> None:
    asked = ["run", "--datasets", "digits", "--tasks", "2", "--seeds", "1", "--methods", "average", *TINY]
    assert clmerge(*asked, results=tmp_path).exit_code == 0
    assert not list(tmp_path.glob("runs/*/weights"))
    for _ in range(2):
        assert clmerge(*asked, "--keep-weights", results=tmp_path).exit_code == 0
        (kept,) = tmp_path.glob("runs/*/weights/replay.yaml")
    stamp = kept.stat().st_mtime_ns
    assert clmerge(*asked, "--keep-weights", results=tmp_path).exit_code == 0
    assert kept.stat().st_mtime_ns == stamp
