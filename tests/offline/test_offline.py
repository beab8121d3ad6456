"""``clmerge merge``: files in, the rule's very numbers out; what does not fit together costs one line and no file."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from bench.cli import cli
from bench.common.errors import UserError
from bench.method.recorded import merge_recorded
from bench.method.weights import Weights
from bench.offline import Offline, merge
from bench.statistics import STATISTICS
from tests.helpers.toy import Golden, close, rule

Model = dict[str, Tensor]
SHAPES = {"norm.bias": (4,), "b.weight": (5, 4), "a.weight": (6, 5)}  # an order that sorting changes


def model(seed: int, near: Model | None = None, dtype: torch.dtype = torch.float32) -> Model:
    generator = torch.Generator().manual_seed(seed)
    drawn = {n: torch.randn(s, generator=generator, dtype=torch.float64) for n, s in SHAPES.items()}
    floats = {n: x if near is None else near[n].double() + 0.1 * x for n, x in drawn.items()}
    return {n: x.to(dtype) for n, x in floats.items()} | {"steps": torch.tensor(7)}


def fisher(seed: int) -> Model:
    return {n: x**2 for n, x in model(seed).items() if n != "steps"}


def laid(tensors: Model) -> Weights:
    return Weights.of({n: tensors[n] for n in sorted(SHAPES)})


def files(folder: Path, **models: Model) -> dict[str, str]:
    folder.mkdir(exist_ok=True)
    for name, tensors in models.items():
        save_file(tensors, folder / f"{name}.safetensors")
    return {name: str(folder / f"{name}.safetensors") for name in models}


def clmerge(*arguments: Any) -> Any:
    return CliRunner().invoke(cli, ["merge", *map(str, arguments)])


THETA_0 = model(0)
TASKS = [model(i, THETA_0) for i in (1, 2, 3)]


@pytest.fixture
def given(tmp_path: Path) -> dict[str, str]:
    """Paths of theta_0, three tasks and their Fishers."""
    named = {f"t{i}": task for i, task in enumerate(TASKS, 1)} | {f"f{i}": fisher(10 + i) for i in (1, 2, 3)}
    return files(tmp_path / "in", base=THETA_0, **named)


# ---- the same numbers by every way in ------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("spelling", "key", "options", "start"),
    [
        ("average", "average", {}, "pretrained"),
        ("task_arithmetic:lam=0.5", "task_arithmetic", {"lam": 0.5}, "merged"),
        ("task_arithmetic", "task_arithmetic", {"delta": "total"}, "previous"),
        ("ties:density=0.5", "ties", {"density": 0.5}, "pretrained"),
        ("dare", "dare", {}, "pretrained"),
        ("pm", "pm_alpha", {}, "merged"),
    ],
)
def test_command_function_and_merge_recorded_give_the_same_bits(
    given: dict[str, str], tmp_path: Path, spelling: str, key: str, options: dict[str, Any], start: str
) -> None:
    fishers = [fisher(11), fisher(12), fisher(13)] if key == "pm_alpha" else None
    recorded = merge_recorded(rule(key, **options), laid(THETA_0), [laid(task) for task in TASKS],
                              [laid(f) for f in fishers] if fishers else None, start=start)[-1]  # fmt: skip
    served = merge(spelling, THETA_0, TASKS, fishers=fishers, start=start)  # type: ignore[arg-type]
    out = tmp_path / "out.safetensors"
    told = ["--fisher", given["f1"], given["f2"], given["f3"]] if fishers else []
    done = clmerge("--method", spelling, "--start", start, "--pretrained", given["base"],
                   "--tasks", given["t1"], given["t2"], "--tasks", given["t3"], *told, "-o", out)  # fmt: skip
    assert done.exit_code == 0, done.output
    assert list(served) == list(THETA_0)
    assert laid(served).digest() == laid(load_file(out)).digest() == recorded.digest()
    assert int(served["steps"]) == int(load_file(out)["steps"]) == 7


def test_the_start_may_stand_in_the_spelling_and_options_under_set(given: dict[str, str], tmp_path: Path) -> None:
    common = ["--pretrained", given["base"], "--tasks", given["t1"], given["t2"], "--json", "-o"]
    one = clmerge("--method", "task_arithmetic@merged:lam=0.5,over_t=true", *common, tmp_path / "a.safetensors")
    two = clmerge("--method", "task_arithmetic@merged", "--set", "lam=0.5", "over_t=true", *common,
                  tmp_path / "b.safetensors")  # fmt: skip
    told = [json.loads(done.stdout) for done in (one, two)]
    assert told[0]["method"] == told[1]["method"] == "task_arithmetic@merged:lam=0.5,over_t=true"
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_seeds_matter_to_rules_that_draw_and_to_no_other() -> None:
    for spelling, same in (("dare", False), ("average", True)):
        a, b, again = (laid(merge(spelling, THETA_0, TASKS, seed=seed)).digest() for seed in (0, 1, 0))
        assert a == again
        assert (a == b) == same


def test_inputs_stay_as_they_are_and_outputs_are_nobody_elses_memory() -> None:
    before = [laid(m).digest() for m in (THETA_0, *TASKS)]
    served = merge("average", THETA_0, TASKS[:1], ignore="norm")
    for tensor in served.values():
        tensor.zero_()
    assert [laid(m).digest() for m in (THETA_0, *TASKS)] == before


# ---- reference numbers, through files ------------------------------------------------------------------------------
def through_files(folder: Path, spelling: str, theta_0: Weights, thetas: list[Weights], **statistics: Any) -> Weights:
    out, told = folder / "out.safetensors", list[str]()
    paths = files(folder / "in", base=theta_0.export(), **{f"t{i}": w.export() for i, w in enumerate(thetas)})
    for option, models in statistics.items():
        told += [f"--{option}", *files(folder / option, **{f"s{i}": m for i, m in enumerate(models)}).values()]
    tasks = [paths[f"t{i}"] for i in range(len(thetas))]
    done = clmerge("--method", spelling, "--pretrained", paths["base"], "--tasks", *tasks, *told, "-o", out)
    assert done.exit_code == 0, done.output
    assert "computed in float64" in done.output
    tensors = load_file(out)
    return Weights.of({n: tensors[n] for n in theta_0.layout.names})


def test_golden_ties_mean_K20(golden: Callable[[str], Golden], tmp_path: Path) -> None:
    g = golden("ties_mean_K20")
    theta_0 = g.part("theta0")
    spelling = f"ties:like=fusionbench,density=0.2,combine=mean,lam={g.meta['hparams']['lam']}"
    g.check(through_files(tmp_path, spelling, theta_0, [theta_0 + tau for tau in g.parts("tau")]), g.part("out/theta"))


def test_golden_pm(golden: Callable[[str], Golden], tmp_path: Path) -> None:
    g = golden("pm")
    fishers = [f.export() for f in g.parts("fisher")]
    g.check(through_files(tmp_path, "pm:clamp=false", g.part("theta0"), g.parts("theta"), fisher=fishers),
            g.part("out/theta"))  # fmt: skip


def test_golden_regmean_ratio1(golden: Callable[[str], Golden], tmp_path: Path) -> None:
    g = golden("regmean_ratio1.0")
    grams = []
    for i in range(g.meta["hparams"]["T"]):
        x = {f"{n}.weight": torch.from_numpy(g.array(f"x/{i}/{n}")) for n in g.meta["hparams"]["linear"]}
        grams.append({n: v.T @ v for n, v in x.items()} | {f"{n}.rows": torch.tensor(len(v)) for n, v in x.items()})
    thetas = g.parts("theta")
    got = through_files(tmp_path, "regmean:a=1,ridge=0", thetas[0] * 0.5, thetas, gram=grams)
    g.check(got, g.part("out/theta"))


# ---- dtypes --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("own", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("theirs", [torch.bfloat16, torch.float32, torch.float64])
def test_output_has_the_pretrained_dtype_and_is_computed_in_no_less_than_float32(
    own: torch.dtype, theirs: torch.dtype
) -> None:
    theta_0, tasks = model(0, dtype=own), [model(i, THETA_0, theirs) for i in (1, 2, 3)]
    compute = torch.float64 if torch.float64 in (own, theirs) else torch.float32
    run = Offline("average", theta_0, tasks)
    assert run.dtype == compute
    served = merge("average", theta_0, tasks)
    for name in SHAPES:
        mean = sum(task[name].double() for task in tasks) / 3
        assert served[name].dtype == own
        # One rounding to its own dtype, after a computation that is as good as exact for the short ones.
        slack = 0 if own in (torch.bfloat16, torch.float16) and compute == torch.float64 else torch.finfo(own).eps
        assert torch.allclose(
            served[name].double(), mean.to(own).double(), rtol=slack, atol=4 * torch.finfo(compute).eps
        )


def test_one_float64_task_is_enough_and_mixed_dtypes_stay_mixed() -> None:
    theta_0 = model(0) | {"a.weight": THETA_0["a.weight"].bfloat16()}
    tasks = [TASKS[0], {n: x.double() if x.is_floating_point() else x for n, x in TASKS[1].items()}]
    assert Offline("average", theta_0, tasks).dtype == torch.float64
    assert Offline("average", theta_0, tasks[:1]).dtype == torch.float32
    served = merge("average", theta_0, tasks)
    assert {n: x.dtype for n, x in served.items()} == {n: x.dtype for n, x in theta_0.items()}


def test_integers_are_the_pretrained_ones_and_a_difference_is_told(tmp_path: Path) -> None:
    tasks = [TASKS[0], TASKS[1] | {"steps": torch.tensor(9)}]
    paths = files(tmp_path, base=THETA_0, a=tasks[0], b=tasks[1])
    done = clmerge("--method", "average", "--pretrained", paths["base"], "--tasks", paths["a"], paths["b"],
                   "-o", tmp_path / "out.safetensors")  # fmt: skip
    assert "note: integer tensors that differ are the pretrained ones: steps" in done.stderr
    assert "1 copied from pretrained" in done.stdout
    assert int(load_file(tmp_path / "out.safetensors")["steps"]) == 7


def test_only_and_ignore_leave_tensors_as_they_were() -> None:
    heads = [task | {"head.weight": torch.full((t, 4), float("nan"))} for t, task in enumerate(TASKS, 2)]
    theta_0 = THETA_0 | {"head.weight": torch.ones(9, 4)}
    for told in ({"ignore": "^head"}, {"only": r"norm|\.weight$", "ignore": "head"}):
        served = merge("average", theta_0, heads, **told)  # type: ignore[arg-type]
        assert torch.equal(served["head.weight"], theta_0["head.weight"])
        assert close(laid(served), laid(merge("average", THETA_0, TASKS)), 0)
    only = merge("average", theta_0, heads, only=r"^a\.")
    assert torch.equal(only["b.weight"], THETA_0["b.weight"])
    assert torch.equal(only["a.weight"], merge("average", THETA_0, TASKS)["a.weight"])


# ---- files ---------------------------------------------------------------------------------------------------------
def test_one_file_after_every_task_and_the_header_that_loaders_ask_for(given: dict[str, str], tmp_path: Path) -> None:
    done = clmerge("--method", "average", "--pretrained", given["base"], "--tasks", given["t1"], given["t2"],
                   "-o", tmp_path / "new" / "served_{t}.safetensors")  # fmt: skip
    assert done.exit_code == 0, done.output
    assert len(done.stdout.splitlines()) == 1
    first, second = (tmp_path / "new" / f"served_{t}.safetensors" for t in (1, 2))
    assert close(laid(load_file(first)), laid(TASKS[0]), 1e-6)
    assert laid(load_file(second)).digest() == laid(merge("average", THETA_0, TASKS[:2])).digest()
    with safe_open(second, framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_an_earlier_output_survives_a_failure(
    given: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "o" / "out.safetensors"
    arguments = ["--method", "average", "--pretrained", given["base"], "--tasks", given["t1"], "-o", out]
    assert clmerge(*arguments).exit_code == 0
    before = out.read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    done = clmerge(*arguments)
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert "No space left" in done.stderr
    assert out.read_bytes() == before
    assert list(out.parent.iterdir()) == [out]


# ---- mistakes ------------------------------------------------------------------------------------------------------
def broken(folder: Path) -> dict[str, str]:
    """Files that have something wrong, by what it is."""
    inf, few, more, shape = (dict(TASKS[0]) for _ in range(4))
    inf["b.weight"] = inf["b.weight"].index_fill(0, torch.tensor([1]), float("inf"))
    nan = fisher(11) | {"b.weight": torch.full((5, 4), float("nan"))}
    del few["a.weight"]
    more["head.weight"] = torch.ones(3)
    shape["b.weight"] = torch.ones(4, 5)
    negative, lacking = fisher(11), fisher(11)
    negative["norm.bias"] = -negative["norm.bias"]
    del lacking["norm.bias"]
    square = {"a.weight": torch.eye(5), "a.weight.rows": torch.tensor(8)}
    paths = files(folder, inf=inf, nan=nan, few=few, more=more, shape=shape, negative=negative, lacking=lacking,
                  kind=TASKS[0] | {"norm.bias": torch.ones(4, dtype=torch.int32)},
                  ints={"steps": torch.tensor(7)}, fp8=THETA_0 | {"a.weight": THETA_0["a.weight"].to(torch.float8_e4m3fn)},
                  norows={"a.weight": torch.eye(5)}, zerorows=square | {"a.weight.rows": torch.tensor(0)},
                  wrongsize=square | {"a.weight": torch.eye(6)}, stray={"z.weight": torch.eye(5)},
                  skew=square | {"a.weight": torch.ones(5, 5).triu()}, half=model(0, dtype=torch.float16),
                  huge={n: x * (1e6 if n in SHAPES else 1) for n, x in TASKS[0].items()},
                  )  # fmt: skip
    whole = Path(paths["more"]).read_bytes()
    for name, content in (("truncated", whole[:-9]), ("empty", b""), ("text", b"no tensors here, only words")):
        (folder / f"{name}.safetensors").write_bytes(content)
        paths[name] = str(folder / f"{name}.safetensors")
    torch.save(TASKS[0], folder / "model.bin")
    (folder / "bare").mkdir()
    return paths | {"pickle": str(folder / "model.bin"), "folder": str(folder / "bare"), "nofile": str(folder / "no")}


MISTAKES = [
    ("average base t1 t2 inf", "inf.safetensors: tensor 'b.weight' holds 4 values that are not finite"),
    ("average inf t1", "inf.safetensors: tensor 'b.weight' holds 4 values that are not finite"),
    ("average base t1 few", "few.safetensors: compared with {base} it lacks a.weight; give checkpoints of one model"),
    ("average base more t1", "it has besides head.weight; give checkpoints of one model, or leave it out with --ignore"),
    ("average base t1 shape", "'b.weight' has shape (4, 5), in {base} (5, 4)"),
    ("average base kind", "'norm.bias' has dtype int32, in {base} float32".replace("int32", "i32")),
    ("average base truncated", "truncated.safetensors: not a whole safetensors file"),
    ("average base empty", "empty.safetensors: not a whole safetensors file"),
    ("average base text", "text.safetensors: not a whole safetensors file"),
    ("average base nofile", "no: no such file"),
    ("average nofile t1", "no: no such file"),
    ("average base pickle", "model.bin: pickles are never loaded; convert it with safetensors.torch.save_file"),
    ("average base folder", "bare: a folder without adapter_config.json"),
    ("average ints ints", "no floating-point tensor to merge"),
    ("average fp8 t1", "tensor 'a.weight' is f8_e4m3, which is not merged; convert it"),
    ("average half huge", "does not fit into torch.float16; convert"),
    ("average base t1 --only (", "only: '(' is not a regular expression"),
    ("average base t1 --only zzz", "no floating-point tensor to merge"),
    ("averag base t1", "unknown method 'averag'; did you mean 'average'"),
    ("average@merged base t1 --start previous", "leave @merged out"),
    ("average base t1 --set lam=1", "unknown option of 'average' 'lam'"),
    ("average base t1 --set lam", "--set: 'lam' is not NAME=VALUE"),
    ("ties:density=2 base t1", "density='2'"),
    ("pm base t1", "'pm_alpha' needs --fisher (statistics['fisher']), one a task"),
    ("pm base t1 t2 --fisher f1", "1 for 2 tasks; give one a task"),
    ("pm base t1 --fisher negative", "negative.safetensors: tensor 'norm.bias' holds negative values"),
    ("pm base t1 --fisher lacking", "lacking.safetensors: nothing for tensor 'norm.bias' (1 missing)"),
    ("pm base t1 --fisher nan", "nan.safetensors: tensor 'b.weight' holds 20 values that are not finite"),
    ("pm base t1 --fisher shape", "'b.weight' has shape (4, 5)"),
    ("cmm_blend base t1", "'cmm_blend' needs --grad-sq (grad_sq=), one a task"),
    ("regmean base t1", "'regmean' needs --gram (statistics['gram']), one a task"),
    ("regmean base t1 --gram norows", "'a.weight' and 'a.weight.rows' (rows of X) belong together"),
    ("regmean base t1 --gram zerorows", "'a.weight'.rows must be one whole number, at least 1"),
    ("regmean base t1 --gram wrongsize", "'a.weight' has shape (6, 6); X^T X would be (5, 5)"),
    ("regmean base t1 --gram stray", "'z.weight' is no weight of {base}"),
    ("regmean base t1 --gram skew", "'a.weight' is not symmetric"),
    ("adamerging base t1", "'adamerging' reads images, which checkpoints do not have; clmerge replay"),
    ("oracle_scalar base t1", "'oracle_scalar' reads images"),
    ("trm base t1", "'trm' needs snapshots of the training"),
    ("became base t1 --fisher f1", "'became' needs the fisher at weights that only merging finds; clmerge replay"),
    ("experts base t1", "there is nothing to merge"),
    ("average base t1 -o t1", "that is an input"),
    ("average base t1 -o f1/x.safetensors", "cannot write there"),
    ("average base t1 -o bare", "end its name in .safetensors"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "told"), MISTAKES, ids=[words for words, _ in MISTAKES])
def test_a_mistake_costs_one_line_and_leaves_no_file(
    given: dict[str, str], tmp_path: Path, words: str, told: str
) -> None:
    paths = given | broken(tmp_path / "broken")

    def path(word: str) -> str:
        name, slash, rest = word.partition("/")
        return paths.get(name, word if name == word else name) + slash + rest

    method, base, *rest = words.split()
    tasks = [path(word) for word in rest[: next((i for i, w in enumerate(rest) if w[0] == "-"), len(rest))]]
    options = [path(word) for word in rest[len(tasks) :]]
    output = [] if "-o" in options else ["-o", str(tmp_path / "out" / "m.safetensors")]
    before = sorted(p for p in tmp_path.rglob("*") if p.is_file())
    done = clmerge("--method", method, "--pretrained", path(base), "--tasks", *tasks, *options, *output)
    assert done.exit_code == 2, done.output
    assert done.stderr.startswith("clmerge: ")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert told.format(base=given["base"]) in done.stderr
    assert sorted(p for p in tmp_path.rglob("*") if p.is_file()) == before


def test_mistakes_of_the_function_are_told_too() -> None:
    for tasks, told in [
        ([], "tasks: none given"),
        (iter([]), "tasks: none given"),
        (TASKS[0], "tasks: give a list"),
        ("t1.safetensors", "tasks: give a list"),
        ([TASKS[0] | {"a.weight": [1.0]}], "task 1: 'a.weight' is a list, not a tensor"),
        ([TASKS[0], None], "task 2: a NoneType; give named tensors or a path"),
    ]:
        with pytest.raises(UserError, match=told):
            merge("average", THETA_0, tasks)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="fewer than tasks"):
        merge("pm", THETA_0, iter(TASKS), fishers=iter([fisher(11)]))


def test_a_statistic_that_the_rule_does_not_read_is_told() -> None:
    run = Offline("average", THETA_0, TASKS, fishers=[fisher(i) for i in (11, 12, 13)])
    list(run.steps())
    assert "method: 'average' does not read --fisher (statistics['fisher'])" in run.notes
    run = Offline("regmean", THETA_0, TASKS, [{}], [{}, {}, {}])  # a rule that declares knows it at once
    assert run.notes == ["method: 'regmean' does not read --fisher (statistics['fisher'])"]


def test_help_needs_no_torch() -> None:
    code = "import sys; from bench.commands.merge import merge; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---- one task at a time --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("spelling", ["average", "task_arithmetic@previous", "ties"])
def test_at_most_one_task_is_alive(spelling: str) -> None:
    alive, drawn = set[int](), 0

    def tasks() -> Iterator[Model]:
        nonlocal drawn
        for i in (1, 2, 3, 4):
            assert not alive, f"task {alive} is still there when task {i} is asked for"
            made = model(i, THETA_0)
            for tensor in made.values():
                alive.add(id(tensor))
                weakref.finalize(tensor, alive.discard, id(tensor))
            drawn += 1
            del tensor
            yield made
            del made

    served = merge(spelling, THETA_0, tasks())
    assert drawn == 4
    assert close(laid(served), laid(merge(spelling, THETA_0, [model(i, THETA_0) for i in (1, 2, 3, 4)])), 0)


def test_what_a_step_leaves_behind_goes_without_the_garbage_collector() -> None:
    P, held = sum(int(np.prod(s)) for s in SHAPES.values()), list[int]()
    frozen = {"norm.bias": THETA_0["norm.bias"]}
    run = Offline("task_arithmetic", THETA_0, (model(i, THETA_0) | frozen for i in range(1, 7)))
    gc.collect()
    gc.disable()
    try:
        for step in run.steps():
            held.append(sum(type(o) is Tensor and o.numel() == P for o in gc.get_objects()))
            del step
    finally:
        gc.enable()
    assert len(set(held[1:])) == 1, held
    assert run.carried_bytes == 4 * P
    assert run.notes[-1].startswith("1 of 3 merged tensors are the pretrained ones in every task")


# ---- statistics by key, and rules that declare or do not ------------------------------------------------------------
PLUGIN = """
from bench.method import Rule, rule

@rule("asks")
class Asks(Rule):
    def merge(self, task):
        F = task.fisher("exact")
        return task.trained if task.t == 1 else task.served + (task.trained - task.served) * (F * 0 + 0.5)
"""


def test_a_statistic_by_its_key_is_the_same_as_by_its_own_option(given: dict[str, str], tmp_path: Path) -> None:
    common = ["--method", "pm", "--pretrained", given["base"], "--tasks", given["t1"], given["t2"], "-o"]
    files = [given["f1"], given["f2"]]
    one, two = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    assert clmerge(*common, one, "--fisher", *files).exit_code == 0
    assert clmerge(*common, two, "--statistic", "fisher", *files).exit_code == 0
    assert one.read_bytes() == two.read_bytes()
    wrong = clmerge(*common, two, "--statistic", "fischer", *files)
    assert wrong.exit_code == 2
    assert "unknown statistic 'fischer'; did you mean 'fisher'?" in wrong.stderr


def test_every_statistic_of_the_list_has_its_option() -> None:
    told = clmerge("--help").stdout
    for key in STATISTICS:
        assert f"--{key} F..." in told


def test_a_rule_that_declares_nothing_is_given_what_it_asks_for(given: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "asks.py").write_text(PLUGIN)
    plugin = [tmp_path / "asks.py"]
    half = merge("asks", THETA_0, TASKS[:2], fishers=[fisher(11), fisher(12)], plugins=plugin)
    assert close(laid(half), (laid(TASKS[0]) + laid(TASKS[1])) / 2, 1e-6)
    with pytest.raises(UserError, match="task 1: the rule needs fisher:exact; give it"):
        merge("asks", THETA_0, TASKS[:2], plugins=plugin)


def test_a_rule_that_writes_in_place_is_told_in_one_line(given: dict[str, str], tmp_path: Path) -> None:
    text = PLUGIN.replace('F = task.fisher("exact")', "task.served.vector.mul_(2)")
    (tmp_path / "asks.py").write_text(text)
    done = clmerge("--method", "asks", "--plugins", tmp_path / "asks.py", "--pretrained", given["base"],
                   "--tasks", given["t1"], "-o", tmp_path / "o.safetensors")  # fmt: skip
    assert done.exit_code == 2
    assert done.stderr.startswith("clmerge: rule asks changed task.served in place; work on a copy")
    assert not (tmp_path / "o.safetensors").exists()
