"""A convolutional network, trained, kept and replayed: BatchNorm's buffers are the pretrained ones or are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from bench.cli import cli

PROTOCOL = """
title: ResNet
backbone: {model: resnet10t, options: {in_chans: 1}}
adapter: full
train: {epochs: 1, batch: 512, lr: 0.001, head_lr: 0.01}
"""


def clmerge(*arguments: str, results: Path) -> Any:
    return CliRunner().invoke(cli, [*arguments, "--results", str(results)])


def record(results: Path) -> dict[str, Any]:
    (path,) = results.glob("runs/*/cell.json")
    return dict(json.loads(path.read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of one cell with its weights."""
    folder = tmp_path_factory.mktemp("convnet")
    (folder / "resnet.yaml").write_text(PROTOCOL, encoding="utf-8")
    done = clmerge(
        "run", "--executor", "local", "--datasets", "digits", "--tasks", "2", "--seeds", "1", "--methods", "average",
        "--protocol", str(folder / "resnet.yaml"), "--keep-weights", "--data", str(folder / "data"),
        results=folder / "results",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    return folder / "results"


def test_its_buffers_are_in_the_folder_and_are_passed_over(ran: Path, tmp_path: Path) -> None:
    (weights,) = ran.glob("runs/*/weights")
    assert "bn1.running_var" in load_file(weights / "task_1.safetensors")
    data = str(ran.parent / "data")
    replayed = clmerge("replay", str(weights), "--methods", "average", "--data", data, results=tmp_path / "results")
    assert replayed.exit_code == 0, replayed.output
    assert record(tmp_path / "results")["counts"] == record(ran)["counts"]


@pytest.mark.parametrize("name", ["bn1.running_var", "bn1.num_batches_tracked"])
def test_a_buffer_that_differs_is_refused_for_what_it_is(ran: Path, tmp_path: Path, name: str) -> None:
    (weights,) = ran.glob("runs/*/weights")
    folder = shutil.copytree(weights, tmp_path / "weights")
    tensors = load_file(folder / "task_2.safetensors")
    save_file(tensors | {name: tensors[name] + 1}, folder / "task_2.safetensors")
    data = str(ran.parent / "data")
    refused = clmerge("replay", str(folder), "--methods", "average", "--data", data, results=tmp_path / "results")
    assert refused.exit_code == 2
    assert f"{name!r} is a buffer" in refused.stderr
    assert "buffers are not merged" in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert not (tmp_path / "results" / "runs").exists()


def test_a_model_that_cannot_be_adapted_is_refused_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "lora.yaml").write_text(PROTOCOL.replace("full", "lora"), encoding="utf-8")
    refused = clmerge(
        "run", "--executor", "local", "--datasets", "digits", "--tasks", "2", "--seeds", "1", "--methods", "average",
        "--protocol", str(tmp_path / "lora.yaml"), "--data", str(tmp_path / "data"), results=tmp_path / "results",
    )  # fmt: skip
    assert refused.exit_code == 2
    assert "ResNet has no fused qkv layer" in refused.stderr
    assert "adapter: full" in refused.stderr
    assert not list((tmp_path / "results").glob("runs/*"))


def test_the_buffers_of_theta_0_stay_while_a_task_is_trained(ran: Path) -> None:
    """BatchNorm is in evaluation mode: what a task's images are like never enters what all tasks share."""
    (weights,) = ran.glob("runs/*/weights")
    before, after = (load_file(weights / f"{name}.safetensors") for name in ("pretrained", "task_2"))
    buffers = [name for name in before if name.split(".")[-1] in ("running_mean", "running_var")]
    assert len(buffers) > 10
    assert all(torch.equal(before[name], after[name]) for name in buffers)
