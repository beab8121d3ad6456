"""A merged running variance below zero is no model: told in one line, and no file is written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from bench.cli import cli
from bench.common.errors import UserError
from bench.offline import merge

BASE = torch.nn.BatchNorm1d(2).state_dict()
#: five tasks whose variance fell to a fifth: theta_0 + 0.3 * 5 * (0.2 - 1) = -0.2
TASKS = [BASE | {"running_var": torch.full((2,), 0.2)} for _ in range(5)]


@pytest.mark.parametrize("method", ["task_arithmetic", "dare:p=0,lam=0.3", "ties:lam=2", "breadcrumbs:lam=2"])
def test_a_variance_below_zero_is_refused(method: str) -> None:
    with pytest.raises(UserError, match=r"'running_var' is a variance with \d of 2 entries below zero.*--ignore"):
        merge(method, BASE, TASKS)


@pytest.mark.parametrize("method", ["average", "task_arithmetic:lam=0.2", "ties:lam=1"])
def test_a_variance_that_stays_above_is_merged(method: str) -> None:
    assert merge(method, BASE, TASKS)["running_var"] == pytest.approx(torch.full((2,), 0.2))


def test_left_out_it_is_the_pretrained_one() -> None:
    assert torch.equal(merge("task_arithmetic", BASE, TASKS, ignore="running_")["running_var"], BASE["running_var"])


def test_other_tensors_may_be_negative() -> None:
    base = {"weight": torch.ones(2), "var_of_weight": torch.ones(2)}
    tasks = [{name: torch.full((2,), 0.2) for name in base} for _ in range(5)]
    assert all(bool((tensor < 0).all()) for tensor in merge("task_arithmetic", base, tasks).values())


def test_the_command_writes_no_file(tmp_path: Path) -> None:
    files = {"base": BASE, **{f"t{i}": task for i, task in enumerate(TASKS)}}
    for name, tensors in files.items():
        save_file(tensors, tmp_path / f"{name}.safetensors")
    base, *tasks = (str(tmp_path / f"{name}.safetensors") for name in files)
    arguments = ["merge", "--pretrained", base, "--tasks", *tasks, "-o", str(tmp_path / "out.safetensors")]
    refused = CliRunner().invoke(cli, [*arguments, "--method", "task_arithmetic"])
    assert (refused.exit_code, (tmp_path / "out.safetensors").exists()) == (2, False)
    assert "running_var" in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert CliRunner().invoke(cli, [*arguments, "--method", "average"]).exit_code == 0
    assert torch.allclose(load_file(tmp_path / "out.safetensors")["running_var"], torch.tensor(0.2))
