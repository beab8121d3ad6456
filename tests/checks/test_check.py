"""The conformance kit: every shipped method passes, and what is broken fails for its own reason."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from bench.checks import CHECKS, Finding, Worlds, check_method
from bench.checks.rules import on_device
from bench.checks.state import reach
from bench.checks.subject import Subject
from bench.cli import cli
from bench.commands.check import all_names, asked_method, declared_names
from bench.registry import Registry

BROKEN = Path(__file__).parent.parent / "broken"
REGISTRY = Registry.load()
NAMES = [check.__name__ for check in CHECKS]
Findings = dict[str, Finding]
Check = Callable[[str], Findings]


@pytest.fixture(scope="module")
def worlds() -> Worlds:
    return Worlds()


@pytest.fixture
def failures(worlds: Worlds, tmp_path: Path) -> Check:
    """What fails of the one thing that a file (or its source) declares, by check."""

    def run(source: str) -> Findings:
        file = BROKEN / f"{source}.py"
        if "\n" in source:
            file = tmp_path / "plugin.py"
            file.write_text(source)
        registry = Registry.load([file])
        [name] = declared_names(registry, file)
        found = list(check_method(asked_method(registry, name), worlds, name))
        assert [f.check for f in found] == NAMES
        return {f.check: f for f in found if f.outcome == "fail"}

    return run


# ---- what is shipped -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", list(all_names(REGISTRY)))
def test_every_shipped_method_passes(name: str, worlds: Worlds) -> None:
    found = list(check_method(asked_method(REGISTRY, name), worlds, name))
    assert [f.check for f in found] == NAMES
    assert {f.check: f.reason for f in found if f.outcome == "fail"} == {}
    assert all(f.reason for f in found if f.outcome == "skip")


@pytest.mark.parametrize("trainer", [key for key in REGISTRY.trainers if key != "plain"])
def test_every_shipped_trainer_passes_alone(trainer: str, worlds: Worlds) -> None:
    found = {f.check: f for f in check_method(asked_method(REGISTRY, f"{trainer}+"), worlds)}
    assert not [f for f in found.values() if f.outcome == "fail"]
    assert found["first_task"].outcome == found["data"].outcome == "skip"
    assert found["weights"].outcome == ("pass" if trainer in ("perturb", "gauss") else "skip")
    assert found["penalty"].outcome == ("pass" if trainer == "ewc" else "skip")


def test_every_rule_and_named_method_is_among_all() -> None:
    asked = [asked_method(REGISTRY, name) for name in all_names(REGISTRY)]
    assert {m.rule.key for m in asked} == set(REGISTRY.rules)
    assert len({m.variant for m in asked}) == len(asked)
    assert {asked_method(REGISTRY, name).variant for name in REGISTRY.methods} <= {m.variant for m in asked}


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("average", "plain+average@pretrained"),
        ("last", "plain+last@merged"),
        ("perturb+average", "perturb+average@merged"),
        ("task_arithmetic@merged:lam=0.5", "plain+task_arithmetic@merged:lam=0.5"),
        ("trm", "plain+trm@merged:steps=3"),
        ("trm_init", "plain+trm@merged:steps=0"),
        ("trm:steps=5", "plain+trm@merged:steps=5"),
        ("perturb+:eps=0.25", "perturb+serve_trained@previous:eps=0.25"),
    ],
)
def test_what_a_name_stands_for(name: str, variant: str) -> None:
    assert asked_method(REGISTRY, name).variant == variant


def test_the_page_tells_of_every_check_in_order() -> None:
    page = (Path(__file__).parent.parent.parent / "docs" / "check.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `(\w+)` \|", page.split("## The checks")[1], re.MULTILINE) == NAMES


def test_a_rule_with_inertia_has_to_say_so(worlds: Worlds, tmp_path: Path) -> None:
    file = tmp_path / "momentum.py"
    file.write_text(
        "from bench.method import Rule, Weights, rule, state\n@rule('inertia')\nclass Inertia(Rule):\n    v: Weights = state()\n"
        "    def merge(self, task):\n        self.v = self.v * 0.5 + (task.trained - task.served)\n"
        "        return task.served + self.v / task.t\n"
    )
    method = asked_method(Registry.load([file]), "inertia")
    assert [f.check for f in check_method(method, worlds) if f.outcome == "fail"] == ["fixed_point"]
    file.write_text(file.read_text().replace("(Rule):", "(Rule):\n    serves_first = False"))
    method = asked_method(Registry.load([file]), "inertia")
    assert not [f for f in check_method(method, worlds) if f.outcome == "fail"]


# ---- what is broken ------------------------------------------------------------------------------------------------
REASONS = {
    "first_task": "theta_hat_1 is 5.0e-01 of",
    "fixed_point": "equal task models, but theta_hat_2 is 1.0e+00",
    "order": "tasks in the order 3, 1, 2 give weights",
    "streams": "another instance at work changes the answer",
    "resume": "the rule goes on differently from its saved state at task 2",
    "carried": "kept outside state(): self.last (4,096 bytes)",
    "degenerate": "zero Fisher: not finite after task 1",
    "layout": "float32: torch.float64 after task 1",
    "seed": "the global generator of torch",
    "data": "data='none' may not read labels of the current task (data.py, line",
    "needs": "reads fisher:exact of the task, which its needs do not declare",
    "inputs": "task.trained was written into by task 1's merge",
    "weights": "the gradient in theta is zero",
    "penalty": "before the first task, at theta_0: nan",
    "evaluation": "a head",
    "lora": "linalg.cholesky",
    "full": "(full.py, line 14)",
    "one_task": "IndexError: list index out of range (one_task.py",
    "one_class": "served non-finite weights after task 1",
    "device": "(device.py, line",
}


def test_there_is_a_broken_example_of_every_check() -> None:
    assert sorted(f.stem for f in BROKEN.glob("*.py")) == sorted(NAMES) == sorted(REASONS)
    for file in BROKEN.glob("*.py"):
        assert file.read_text().startswith('"""Broken on purpose: '), file


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("lora", "device")])
def test_each_broken_example_fails_its_check_and_no_other(name: str, failures: Check) -> None:
    found = failures(name)
    # Where a task has one class its Fisher is zero: that is the same fault.
    assert set(found) == {name} | ({"one_class"} if name == "degenerate" else set())
    assert REASONS[name] in found[name].reason


def test_what_needs_full_rank_fails_with_lora_and_not_in_full_fine_tuning(failures: Check) -> None:
    found = failures("lora")
    assert REASONS["lora"] in found["lora"].reason
    assert "full" not in found


def test_a_tensor_left_on_the_cpu_fails_on_a_gpu_alone(failures: Check) -> None:
    found = failures("device")
    if not torch.cuda.is_available():
        assert found == {}
        pytest.skip("no GPU on this machine")
    assert set(found) == {"device"}
    assert REASONS["device"] in found["device"].reason


HEAD = """
from typing import Any, ClassVar
import random
import re
import numpy as np
import torch
from bench.method import Rule, Task, Trainer, Weights, option, rule, state, trainer
KEPT = []

"""
AVERAGE = "        return task.served + (task.trained - task.served) / task.t\n"
LEARN = "        self.last = task.trained\n"


def a_rule(body: str, fields: str = "") -> str:
    lines = "".join(f"        {line}\n" for line in body.splitlines())
    told = "".join(f"    {line}\n" for line in fields.splitlines())
    return f'{HEAD}@rule("mine")\nclass Mine(Rule):\n{told}    def merge(self, task):\n{lines}{AVERAGE}'


@pytest.mark.parametrize(
    ("source", "check", "reason"),
    [
        (a_rule("KEPT.append(task.trained.vector)"), "carried", "kept in the class or the module"),
        (a_rule("self.seen[task.t] = task.served", "seen: ClassVar[dict] = {}"), "carried", "class or the module"),
        (a_rule("self.ask = lambda w=task.trained: w"), "carried", "self.ask (4,096 bytes)"),
        (a_rule("self.array = np.ones(10)"), "carried", "self.array (80 bytes)"),
        (a_rule("self.task = task"), "carried", "self.task"),
        (a_rule("self.few = task.trained.vector[:8]", "few: Any = state(0)"), "carried", "a view of a larger tensor?"),
        (a_rule("self.names = {task.t}", "names: Any = state(0)"), "resume", "holds a set, which cannot be saved"),
        (a_rule("[(x, y)] = task.batches(8, 1)\nself.images = x", "data = 'unlabelled'\nimages: Any = state(0)"),
         "data", "state images holds images"),
        (a_rule("[(x, y)] = task.batches(8, 1, True)", "data = 'unlabelled'"), "data", "may not read labels"),
        (a_rule("task.accuracy(task.served)", "data = 'labelled'"), "data", "may not read validation"),
        (a_rule("task.log(tasks=len(task.stream.tasks))"), "data", "task.stream is read, which is no member of Task"),
        (a_rule("task.log(size=np.random.rand())"), "seed", "the global generator of numpy"),
        (a_rule("task.log(size=random.random())"), "seed", "the global generator of random"),
        (a_rule("KEPT.append(0)\nif len(KEPT) % 2: return task.trained * (1 + 1e-6 * len(KEPT))"), "seed", "other bits"),
        (a_rule("if len(task.stream.tasks) == 3: return task.trained"), "streams", "a third task to come"),
        (a_rule("task.fisher().vector.mul_(2)", "data = 'labelled'"), "inputs", "fisher() was written into"),
        (a_rule("task.served.vector.add_(1e-3)"), "inputs", "task.pretrained was written into"),
        (a_rule("return None"), "layout", "TypeError: rule mine: merge gives a NoneType, not Weights"),
        (a_rule("D = task.trained - task.served\nif D.norm(): return task.trained / D.norms().prod().sign()"),
         "degenerate", "blocks.0.attn.qkv.k.weight left alone"),
        (a_rule("for w in task.recorded['snapshots']: pass"), "lora", "KeyError"),
    ],
)  # fmt: skip
def test_other_faults_of_rules_are_found_and_named(source: str, check: str, reason: str, failures: Check) -> None:
    found = failures(source)
    assert check in found
    assert reason in found[check].reason


def a_trainer(body: str, fields: str = "") -> str:
    told = "".join(f"    {line}\n" for line in (fields + "\n" + body).splitlines())
    return f'{HEAD}@trainer("mine")\nclass Mine(Trainer):\n{told}'


@pytest.mark.parametrize(
    ("source", "check", "reason"),
    [
        (a_trainer("def weights(self, theta, start, rng):\n    return theta * (1 + 0.1 * torch.rand(()))"),
         "seed", "training depends on a global generator"),
        (a_trainer("def weights(self, theta, start, rng):\n    return theta / (theta - start).norm()"),
         "weights", "at the start of a task: not finite"),
        (a_trainer("def weights(self, theta, start, rng):\n    return theta.detach()"), "weights", "no gradient reaches"),
        (a_trainer("def weights(self, theta, start, rng):\n    with torch.no_grad(): theta.vector.add_(1e-3)\n"
                   "    return theta * 1.5"), "weights", "theta was written into"),
        (a_trainer("def penalty(self, theta):\n    return theta.vector.square()"), "penalty", "a tensor of shape (1024,)"),
        (a_trainer("def penalty(self, theta):\n    return (theta - self.pretrained).vector.square().sum().sqrt()"),
         "penalty", "its gradient is not finite"),
        (a_trainer("def learnt(self, task):\n    self.last = task.trained"), "carried", "self.last (4,096 bytes)"),
        (a_trainer("def begin(self, theta_0):\n    super().begin(theta_0)\n    self.t = 0\n"
                   "def learnt(self, task):\n    self.t = task.t\n    self.S = task.trained\n"
                   "def penalty(self, theta):\n    return (theta - self.S).vector.square().sum() * self.t",
                   "S: Weights = state()"), "resume", "the trainer goes on differently from its saved state at task 2"),
        (a_trainer("def learnt(self, task):\n    task.backbone.module.train()"), "evaluation", "a mode of the model"),
    ],
)  # fmt: skip
def test_other_faults_of_trainers_are_found_and_named(source: str, check: str, reason: str, failures: Check) -> None:
    found = failures(source)
    assert check in found
    assert reason in found[check].reason


def test_one_plugin_spoils_nothing_for_the_next(failures: Check, worlds: Worlds) -> None:
    before = [w.digest() for w in Subject(asked_method(REGISTRY, "pm"), worlds).alone()]
    failures("inputs")
    failures(a_rule("task.fisher().vector.mul_(0)\ntask.heads[0].weight.zero_()\ntask.pretrained.vector.zero_()"))
    assert [w.digest() for w in Subject(asked_method(REGISTRY, "pm"), worlds).alone()] == before
    assert [w.digest() for w in Subject(asked_method(REGISTRY, "pm"), Worlds()).alone()] == before


def test_global_generators_are_left_where_they_were(worlds: Worlds) -> None:
    before = (torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate())  # noqa: NPY002
    list(check_method(asked_method(Registry.load([BROKEN / "seed.py"]), "broken_seed"), worlds))
    assert before == (torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate())  # noqa: NPY002


# ---- the world is one in which something can go wrong ----------------------------------------------------------------
def test_task_models_differ_and_have_loras_rank(worlds: Worlds) -> None:
    theta_0, models = worlds.lora.backbone.pretrained, worlds.lora.track().models
    taus = [m.trained - theta_0 for m in models]
    for tau in taus:
        assert tau.norm() > 0.05 * theta_0.norm()
        assert all(int(torch.linalg.matrix_rank(v)) == 2 for _, v in tau.items())
    assert abs(taus[0].dot(taus[1])) < 0.7 * taus[0].norm() * taus[1].norm()
    ranks = {v.ndim for _, v in worlds.full.backbone.pretrained.items()}
    assert ranks == {1, 2, 3, 4}
    assert all(
        v.any() for m in worlds.full.track().models for _, v in (m.trained - worlds.full.backbone.pretrained).items()
    )


def test_the_comparison_of_devices_is_exact_on_one_device(worlds: Worlds) -> None:
    assert on_device(Subject(asked_method(REGISTRY, "pm"), worlds), "cpu") == "0e+00"


def test_memory_is_reached_once_however_often_it_is_held() -> None:
    x = torch.zeros(10)
    found = list(reach([x[:3], {"a": x, "b": (x.view(2, 5),)}, "text", None, Worlds]))
    assert [y.untyped_storage().nbytes() for y in found] == [40]


# ---- the command -----------------------------------------------------------------------------------------------------
def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["check", *map(str, arguments)])


def test_the_command_prints_one_line_a_check_and_a_summary() -> None:
    told = call("average")
    assert told.exit_code == 0, told.output
    lines = told.output.splitlines()
    assert lines[0] == "average = plain+average@pretrained"
    assert [line.split()[1] for line in lines[1:-1]] == NAMES
    assert lines[-1].startswith("1 methods: ")
    assert "0 failed" in lines[-1]


def test_the_command_exits_with_1_and_says_why_where_a_check_fails() -> None:
    told = call(BROKEN / "order.py", BROKEN / "resume.py", "--quiet")
    assert told.exit_code == 1
    lines = told.output.splitlines()
    assert len(lines) == 5
    assert lines[0].startswith("broken_order@merged")
    assert lines[1].startswith("  FAIL  order ")
    assert lines[3].startswith("  FAIL  resume ")
    assert "2 failed" in lines[4]


def test_findings_as_json() -> None:
    told = call("average", "last@previous", "--json")
    assert told.exit_code == 0
    rows = json.loads(told.output)
    assert [row["check"] for row in rows] == NAMES * 2
    assert {row["method"] for row in rows} == {"average", "last@previous"}
    assert set(rows[0]) == {"method", "variant", "check", "outcome", "reason", "about", "seconds"}


def test_a_shipped_file_can_be_checked_by_its_path() -> None:
    told = call(Path(__file__).parent.parent.parent / "methods" / "average.py", "--json")
    assert told.exit_code == 0, told.output
    assert {row["method"] for row in json.loads(told.output)} == {"average", "average_merged"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "name a method, a spelling or a plugin file, or say --all"),
        (["averige"], "unknown method 'averige'; did you mean 'average'"),
        (["average:lam=1"], "unknown option 'lam'"),
        (["task_arithmetic:lam=0.5@merged"], "lam='0.5@merged': Input should be a valid number"),
        (["average@merge"], "unknown start 'merge'"),
        (["perturbb+"], "unknown trainer 'perturbb'"),
        (["nowhere.py"], "no plugin file"),
        ([str(Path(__file__).parent.parent / "helpers" / "toy.py")], "declares no method, rule or trainer"),
    ],
)
def test_wrong_requests_exit_with_2_and_one_line(arguments: list[str], says: str) -> None:
    told = call(*arguments)
    assert told.exit_code == 2
    assert says in told.output
    assert len(told.output.splitlines()) == 1


def test_a_trainer_that_writes_into_the_start_is_named(failures: Check) -> None:
    found = failures(
        "from bench.method import Trainer, trainer\n@trainer('pull')\nclass Pull(Trainer):\n"
        "    def weights(self, theta, start, rng):\n        start.vector.data.mul_(1.001)\n        return theta\n"
    )
    assert "start was written into" in found["weights"].reason
