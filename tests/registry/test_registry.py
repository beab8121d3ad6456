"""Plugins by name and the grammar of methods: what is right resolves, what is wrong says so in one helpful line."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from bench.common.errors import UserError
from bench.common.paths import ROOT
from bench.method import Rule
from bench.registry import Registry
from bench.registry.code_hash import code_of_class, code_of_modules

TUNED = {"ewc": {"lam": 30.0}}
RULE = "from bench.method import Rule, method, option, rule\n\n@rule({key!r})\nclass R(Rule):\n    {body}\n"


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry.load()


def test_every_named_method_resolves_to_itself_and_its_variant_back_to_it(registry: Registry) -> None:
    for key in registry.methods:
        method = registry.resolve(key, TUNED)
        assert method.key == key
        again = registry.resolve(method.variant, TUNED)
        assert (again.key, again.variant, again.identity()) == (key, method.variant, method.identity())
        trainer, rule = method.build()
        assert trainer.key == method.trainer.key
        assert rule.key == method.rule.key


@pytest.mark.parametrize(
    ("spelling", "key", "variant"),
    [
        ("pm:eps=0.3", "perturb+pm_alpha@merged:eps=0.3", "perturb+pm_alpha@merged:eps=0.3"),
        ("pm:eps=0.5", "pm", "perturb+pm_alpha@merged"),
        ("average@merged", "average_merged", "plain+average@merged"),
        ("perturb+average@previous", "perturb+average@previous", "perturb+average@previous"),
        ("plain+average@pretrained", "average", "plain+average@pretrained"),
        ("task_arithmetic@previous", "task_arithmetic@previous:delta=total", "plain+task_arithmetic@previous:delta=total"),
        ("task_arithmetic@previous:delta=increment", "task_arithmetic@previous:delta=increment", "plain+task_arithmetic@previous:delta=increment"),
        ("pm_alpha@merged:clamp=no", "pm_alpha@merged:clamp=false", "plain+pm_alpha@merged:clamp=false"),
        ("ewc", "ewc", "ewc+last@previous:lam=30"),
        ("joint@merged", "joint", "joint+last@pretrained"),
        ("linear_probe@previous", "linear_probe", "frozen+last@pretrained"),
        ("trm:rule.steps=0", "trm_init", "plain+trm@merged:steps=0"),
        ("average@merged/ncm", "average@merged/ncm", "plain+average@merged/ncm"),
        ("pm/refit:eps=0.3", "perturb+pm_alpha@merged/refit:eps=0.3", "perturb+pm_alpha@merged/refit:eps=0.3"),
        ("ties@pretrained/ridge:density=0.1", "ties@pretrained/ridge:density=0.1", "plain+ties@pretrained/ridge:density=0.1"),
        ("linear_probe/ridge", "ridge", "frozen+last@pretrained/ridge"),
        ("ncm", "ncm", "frozen+last@pretrained/ncm"),
        ("ridge:projection=2000", "frozen+last@pretrained/ridge:projection=2000", "frozen+last@pretrained/ridge:projection=2000"),
        ("ties/ridge:density=0.1,head.projection=50", "ties@pretrained/ridge:density=0.1,projection=50", "plain+ties@pretrained/ridge:density=0.1,projection=50"),
        ("average@merged/align:align_epochs=3,align_lr=0.1", "average@merged/align:align_epochs=3,align_lr=0.1", "plain+average@merged/align:align_epochs=3,align_lr=0.1"),
        ("ranpac", "ranpac", "first_session+first@previous/ridge"),
        ("ncm/linear", "frozen+last@pretrained/linear", "frozen+last@pretrained/linear"),
        ("average/linear", "average@pretrained/linear", "plain+average@pretrained/linear"),
    ],
)  # fmt: skip
def test_grammar(registry: Registry, spelling: str, key: str, variant: str) -> None:
    method = registry.resolve(spelling, TUNED)
    assert (method.key, method.variant) == (key, variant)
    assert registry.resolve(variant, TUNED).identity() == method.identity()


@pytest.mark.parametrize(
    ("spelling", "told"),
    [
        ("pn", "unknown method 'pn'; did you mean 'pm'?"),
        ("perturb+averag@merged", "unknown rule 'averag'; did you mean 'average'"),
        ("pertub+average@merged", "unknown trainer 'pertub'; did you mean 'perturb'?"),
        ("pm@merge", "unknown start 'merge'; did you mean 'merged'?"),
        ("pm:epss=1", "unknown option 'epss'; did you mean 'eps'?"),
        ("pm:eps=-1", "eps='-1': Input should be greater than or equal to 0"),
        ("pm:eps=much", "eps='much': Input should be a valid number"),
        ("trm:steps=1.5", "steps='1.5'"),
        ("task_arithmetic:delta=all", "Input should be 'increment' or 'total'"),
        ("pm:eps", "'eps' is not field=value"),
        ("ridge:projektion=9", "unknown option 'projektion'; did you mean 'projection'?"),
        ("ridge:projection=many", "projection: Input should be a valid integer"),
        ("ridge:projection=0", "projection: Input should be greater than or equal to 1"),
        ("average@merged/ncm:projection=9", "unknown option 'projection'"),
        ("average@merged/ncm:head.projection=9", "unknown option of head 'ncm' 'projection'"),
        ("average@merged:head.projection=9", "head.projection needs the head that reads it"),
        ("pm:left.eps=1", "write trainer.eps or rule.eps"),
        ("perturb+average", "does not say where training starts; write one of perturb+average@pretrained"),
        ("pm average", "is not [trainer+]rule[@start]"),
        ("", "is not [trainer+]rule[@start]"),
        ("pm/rigde", "unknown head 'rigde'; did you mean 'ridge'?"),
        ("pm/", "unknown head ''"),
        ("pm@merged:eps=1/ncm", "eps='1/ncm': Input should be a valid number"),
        ("pm/ncm@merged", "is not [trainer+]rule[@start][/head]"),
        ("perturb+average/ncm:x=1", "write one of perturb+average@pretrained/ncm, "),
    ],
)  # fmt: skip
def test_mistakes_are_one_line_with_the_nearest_match(registry: Registry, spelling: str, told: str) -> None:
    with pytest.raises(UserError, match=re.escape(told)) as caught:
        registry.resolve(spelling, TUNED)
    assert "\n" not in str(caught.value)


def test_a_required_option_without_a_value_is_an_error_that_says_where_to_put_one(registry: Registry) -> None:
    with pytest.raises(UserError, match=r"tuned\.ewc\.lam"):
        registry.resolve("ewc")
    assert registry.resolve("ewc:lam=3").variant == "ewc+last@previous:lam=3"


def test_a_user_rule_inherits_no_name_of_another(registry: Registry) -> None:
    assert registry.resolve("trm:steps=7").status == "reconstruction"
    assert registry.resolve("joint_local").status == "oracle"
    assert registry.resolve("plain+oracle_scalar@pretrained").status == "oracle"
    assert registry.resolve("pm:eps=0.1").status == "variant"


def test_broken_plugins_are_named_with_file_and_line(tmp_path: Path) -> None:
    file = tmp_path / "broken.py"
    for source, told in (
        ("import bench\n\nraise RuntimeError('no')\n", "line 3: RuntimeError: no"),
        ("def f(:\n", "line 1: SyntaxError"),
        ("import nowhere_to_be_found\n", "ModuleNotFoundError"),
    ):
        file.write_text(source)
        with pytest.raises(UserError, match=re.escape(told)) as caught:
            Registry.load([file])
        assert str(file) in str(caught.value)
    with pytest.raises(UserError, match="no plugin folder"):
        Registry.load([tmp_path / "missing"])


def test_a_key_that_is_taken_names_both_files(tmp_path: Path) -> None:
    (tmp_path / "again.py").write_text(RULE.format(key="average", body="pass"))
    with pytest.raises(UserError, match=r"again\.py: rule 'average' is already defined in .*average\.py"):
        Registry.load([tmp_path])


def test_both_parts_with_one_option_need_a_prefix(tmp_path: Path) -> None:
    (tmp_path / "two.py").write_text(
        "from bench.method import Rule, Trainer, option, rule, trainer\n"
        "@trainer('t2')\nclass T(Trainer):\n    lam: float = option(1.0, help='x')\n"
        "@rule('r2')\nclass R(Rule):\n    lam: float = option(1.0, help='y')\n"
    )
    registry = Registry.load([tmp_path])
    with pytest.raises(UserError, match=r"write trainer\.lam or rule\.lam"):
        registry.resolve("t2+r2@merged:lam=2")
    method = registry.resolve("t2+r2@merged:rule.lam=2")
    assert (method.trainer_options, method.rule_options) == ({"lam": 1.0}, {"lam": 2.0})


def test_code_hashes_follow_code_and_not_words(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    source = '"""Doc."""\nSCALE = 2\n\n' + RULE.format(key="mine", body="'''Doc.'''\n    x: int = option(1, help='h')")

    def code(text: str) -> str:
        file.write_text(text)
        return code_of_class(Registry.load([file]).rules["mine"])

    first = code(source)
    assert code(source.replace("Doc.", "Other.") + "# comment\nmethod('m', 'mine@merged')\n") == first
    assert code(source + "\n@rule('other')\nclass O(Rule):\n    y = 1\n") == first
    assert code(source + "\nclass Helper:\n    y = 1\n") != first
    assert code(source.replace("SCALE = 2", "SCALE = 3")) != first
    assert code(source.replace("option(1", "option(2")) != first
    assert code_of_class(Rule) == "plain"
    assert code_of_modules("run/train.py") != code_of_modules("data/stream.py")


@pytest.mark.run
def test_importing_changes_no_global_state_and_the_fast_path_loads_no_torch() -> None:
    code = (
        "import os, random, sys, numpy, rich.style\n"  # rich draws random numbers when it is imported
        "before = os.getcwd(), dict(os.environ), random.getstate(), str(numpy.random.get_state())\n"
        "import importlib, pkgutil, bench.cli, bench.execute.execute\n"
        "for room in ('common', 'config', 'registry', 'records', 'plan', 'report', 'commands'):\n"
        "    package = importlib.import_module('bench.' + room)\n"
        "    for file in pkgutil.walk_packages(package.__path__, package.__name__ + '.'):\n"
        "        importlib.import_module(file.name)\n"
        "from bench.registry import Registry\nRegistry.load()\n"
        "assert before == (os.getcwd(), dict(os.environ), random.getstate(), str(numpy.random.get_state()))\n"
        "heavy = {'torch', 'ray', 'timm', 'peft', 'matplotlib', 'pandas', 'scipy', 'sklearn'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "import torch; threads = torch.get_num_threads(); seed = torch.initial_seed()\n"
        "import bench.run.cell, bench.run.pretrain\n"
        "assert (threads, seed) == (torch.get_num_threads(), torch.initial_seed())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_harness_names_no_plugin(registry: Registry) -> None:
    keys = set(registry.methods) | set(registry.rules) | set(registry.trainers)
    # "plain" is the base class's own key; the others are words that the harness uses for other things: kinds of
    # heads and statistics, a protocol preset.
    keys -= {"plain", "last", "joint", "average", "experts", "frozen", "fisher", "ncm", "ridge", "magmax"}
    for file in sorted((ROOT / "bench").rglob("*.py")):
        text = file.read_text()
        found = {key for key in keys if re.search(rf"""['"]{re.escape(key)}['"]""", text)}
        assert not found, f"{file.name} names {found}"
        assert not re.search(r"^\s*(from|import) (methods|datasets)\b", text, re.M)
