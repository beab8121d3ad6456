"""The path from the old served model to the newly trained one: it passes through what the run itself counted."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from click.testing import CliRunner
from safetensors.torch import load_file

from bench.cli import cli
from bench.commands.landscape import merge_path
from bench.common.paths import ROOT
from bench.config.files import load_dataset_config
from bench.data.dataset import load_dataset
from bench.report.figures.landscape import landscape_figure
from bench.run.landscape import Point, Reading, Step, grid

TINY = ["--protocol-set", "train.epochs=1", "--protocol-set", "per_dataset={}"]
METHODS = "pm_alpha@merged average ties@merged"


def walk(results: Path, *more: str, methods: str = METHODS, tasks: str = "3") -> Any:
    asked = ["landscape", "--datasets", "digits", "--tasks", tasks, "--methods", methods, "--step", "0.5", *TINY]
    places = ["--results", str(results), "--data", str(ROOT / "data"), "--out", str(results / "out")]
    return CliRunner().invoke(cli, [*asked, *places, *more])


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three tasks of digits under three rules, and their paths."""
    results = tmp_path_factory.mktemp("walked")
    done = walk(results)
    assert done.exit_code == 0, done.output
    assert "differ from the record" not in done.output
    assert "closed form" in done.output
    return results


Lines = dict[tuple[int, str, float, int], dict[str, str]]


def path_of(results: Path, rule: str) -> tuple[dict[str, Any], Path, Lines]:
    """Record, kept weights, and the CSV by (t, point, alpha, task)."""
    for folder in (results / "runs").iterdir():
        record = json.loads((folder / "cell.json").read_text())
        if record["method"]["rule"]["key"] == rule:
            with (results / "out" / f"{folder.name}.csv").open() as file:
                lines = list(csv.DictReader(file))
            by = {(int(x["t"]), x["point"], float(x["alpha"]), int(x["task"])): x for x in lines}
            return record, folder / "weights", by
    raise AssertionError(rule)


@pytest.mark.parametrize("rule", ["pm_alpha", "average", "ties"])
def test_the_path_passes_through_the_counts_of_the_record(walked: Path, rule: str) -> None:
    record, _, lines = path_of(walked, rule)
    for t in (2, 3):
        new = lines[t, "path", 1.0, t]
        assert [int(new["correct"]), int(new["images"])] == record["before_merge"][t - 1]
        assert int(new["correct_taskaware"]) == record["before_merge_taskaware"][t - 1][0]
        old = [int(lines[t, "path", 0.0, i]["correct_taskaware"]) for i in range(1, t)]
        assert old == [pair[0] for pair in record["counts_taskaware"][t - 2]]
        served = [x for (of, point, _, _), x in lines.items() if (of, point) == (t, "served")]
        assert [[int(x["correct"]), int(x["images"])] for x in served] == record["counts"][t - 1]
        assert [int(x["correct_taskaware"]) for x in served] == [p[0] for p in record["counts_taskaware"][t - 1]]


def test_the_closed_form_is_the_rules_own_and_on_the_path(walked: Path) -> None:
    record, _, lines = path_of(walked, "pm_alpha")
    for t in (2, 3):
        told = record["tasks"][t - 1]["scalars"]
        (served,) = {a for of, point, a, _ in lines if (of, point) == (t, "served")}
        assert served == pytest.approx(told["alpha"], abs=1e-4)
        if -0.2 <= told["alpha_raw"] <= 1.2:
            assert (t, "path", told["alpha_raw"], 1) in lines
        assert any(abs(a - 1 / t) < 1e-12 for of, point, a, _ in lines if (of, point) == (t, "path"))


def test_losses_and_counts_halfway_by_timm_alone(walked: Path) -> None:
    _, folder, lines = path_of(walked, "average")
    told = yaml.safe_load((folder / "replay.yaml").read_text())
    model = timm.create_model(told["backbone"]["model"], num_classes=0, **told["backbone"]["options"]).eval()
    old, new = load_file(folder / "served_1.safetensors"), load_file(folder / "task_2.safetensors")
    model.load_state_dict({name: (old[name] + new[name]) / 2 for name in old})
    config = load_dataset_config("digits", [])
    dataset = load_dataset(config, ROOT / "data")
    x = (torch.from_numpy(dataset.test_images.copy()).float() / 255 - config.image.mean[0]) / config.image.std[0]
    with torch.inference_mode():
        features = model(x)
    heads = [load_file(folder / f"head_{t}.safetensors") for t in (1, 2)]
    scores = [features @ head["weight"].T + head["bias"] for head in heads]
    labels = torch.from_numpy(dataset.test_labels.copy()).long()
    for task, classes in enumerate(told["tasks"][:2]):
        mine = torch.isin(labels, torch.tensor(classes))
        truth = torch.tensor([classes.index(c) for c in labels[mine].tolist()])
        seen, shift = torch.cat(scores, 1)[mine], task * len(told["tasks"][0])
        line = lines[2, "path", 0.5, task + 1]
        assert int(line["correct"]) == int((seen.argmax(1) == truth + shift).sum())
        entropy = torch.nn.functional.cross_entropy
        assert float(line["loss"]) == pytest.approx(float(entropy(seen, truth + shift)), rel=1e-4)
        assert float(line["loss_taskaware"]) == pytest.approx(float(entropy(scores[task][mine], truth)), rel=1e-4)


def test_what_is_served_beside_the_path_is_said(walked: Path) -> None:
    done = walk(walked, "--quiet", methods="ties@merged")
    assert done.exit_code == 0, done.output
    off = [float(line.split()[4]) for line in done.output.splitlines() if line.split()[:1] in (["2"], ["3"])]
    assert len(off) == 2
    assert min(off) > 0.05


@pytest.mark.parametrize(
    ("methods", "tasks", "said"),
    [
        ("", "3", "--methods"),
        ("joint", "3", "'joint' moves no served model"),
        ("linear_probe", "3", "'linear_probe' moves no served model"),
        ("average@merged/ncm", "3", "heads of kind 'ncm' are fitted to the served weights"),
        ("average", "1", "has no merge to look at"),
    ],
)
def test_what_has_no_path_is_refused_before_anything_runs(methods: str, tasks: str, said: str, tmp_path: Path) -> None:
    done = walk(tmp_path / "results", methods=methods, tasks=tasks)
    assert done.exit_code == 2, done.output
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "results").exists()


def test_weights_of_another_run_are_refused(walked: Path, tmp_path: Path) -> None:
    shutil.copytree(walked / "runs", tmp_path / "runs")
    _, folder, _ = path_of(walked, "average")
    kept = tmp_path / folder.relative_to(walked)
    shutil.copy(kept / "task_1.safetensors", kept / "task_2.safetensors")
    done = walk(tmp_path, methods="average")
    assert done.exit_code == 2
    assert "task_2.safetensors: not the weights of its record" in done.stderr


# --- the figure ------------------------------------------------------------------------------------------------------
def step(t: int, closed_form: float | None = 0.25) -> Step:
    """Old tasks lose 10 points of 100 along the path, the new one gains 20; losses are the opposite."""

    def readings(a: float) -> tuple[Reading, ...]:
        old = [Reading(i, 100, round(80 - 10 * a), 90, 1 + a, 0.5) for i in range(1, t)]
        return (*old, Reading(t, 300, round(60 + 60 * a), 280, 2 - a, 0.4))

    points = tuple(Point(a, readings(a)) for a in (-0.2, 0.0, 0.5, 1.0, 1.2))
    return Step(t, points, Point(0.5, readings(0.5), on_path=False), closed_form, 0.0, 0)


def test_weights_by_images_and_the_best_points() -> None:
    one = step(2)
    start = one.points[1]
    assert start.accuracy(slice(None)) == 100 * (80 + 60) / 400
    assert start.accuracy(slice(0, 1), taskaware=True) == 90
    assert start.loss(slice(None)) == (100 * 1 + 300 * 2) / 400
    assert one.best() == {"least loss": 1.2, "least loss, task given": -0.2, "best accuracy": 1.2}


def test_panels_show_the_readings_and_the_marks() -> None:
    figure = landscape_figure([merge_path(step(2)), merge_path(step(3, closed_form=3.0))], "title")
    above, beside, below, _ = figure.axes
    lines = {line.get_label(): line for line in above.lines}
    assert list(lines["old tasks"].get_ydata()) == [82, 80, 75, 70, 68]
    assert list(lines["new task"].get_ydata()) == pytest.approx([16, 20, 30, 40, 44])
    assert list(lines["closed form"].get_xdata()) == [0.25, 0.25]
    assert list(lines["1/t"].get_xdata()) == [0.5, 0.5]
    assert [line.get_ydata()[0] for line in above.lines if line.get_marker() == "*"][:2] == [75, 30]
    assert list({x.get_label(): x for x in below.lines}["new task"].get_ydata()) == [2.2, 2, 1.5, 1, 0.8]
    assert "closed form" not in [line.get_label() for line in beside.lines]  # outside the panel, but told above it
    assert "closed form 3.00" in beside.get_title()
    assert above.get_ylim() == beside.get_ylim()


def test_nineteen_merges_have_a_panel_each() -> None:
    figure = landscape_figure([merge_path(step(t)) for t in range(2, 21)], "title")
    shown = [axes for axes in figure.axes if axes.axison]
    assert len(shown) == 2 * 19
    assert [axes.get_title().split("\n")[0] for axes in shown if axes.get_title()] == [f"t = {t}" for t in range(2, 21)]


@pytest.mark.parametrize("step_size", [0.05, 0.3, 0.5])
def test_the_grid_has_both_models_and_both_ends(step_size: float) -> None:
    points = grid(step_size)
    assert {-0.2, 0.0, 1.0, 1.2} <= set(points)
    assert points == sorted(points)
    if step_size == 0.05:
        assert len(points) == 29
