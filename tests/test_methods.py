"""The shipped methods against reference numbers, identities, and their own definitions written out naively."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax
from toy import REGISTRY, SHAPES, Golden, Models, Toy, chain, close, noise, property_test, rule, seeds, trainer

from bench.backbone import Backbone, LoRA
from bench.config import ProtocolConfig
from bench.errors import UserError
from bench.grid import cell_of
from bench.memory import nbytes, pack, unpack
from bench.method import Plugin, Rule, Trainer
from bench.minimise import minimise
from bench.store import Store, load_tensors, save_tensors
from bench.stream import Stream
from bench.task import LiveTask, RecordedTask, merge_recorded
from bench.train import Learnt, train
from bench.weights import Weights

Record = Callable[[str, object], None]


# ---- reference numbers ---------------------------------------------------------------------------------------------
def test_golden_average(golden: Callable[[str], Golden]) -> None:
    g = golden("average")
    thetas = g.parts("theta")
    for theta_0 in (thetas[0].zeros(), thetas[1]):  # the mean does not depend on it
        steps = merge_recorded(rule("average"), theta_0, thetas)
        for t, served in enumerate(steps):
            g.check(served, g.part(f"out/step/{t}/theta"))
        g.check(steps[-1], g.part("out/theta"))


def test_golden_task_arithmetic(golden: Callable[[str], Golden]) -> None:
    g = golden("task_arithmetic")
    theta_0 = g.part("theta0")
    steps = merge_recorded(rule("task_arithmetic", lam=g.meta["hparams"]["lam"]), theta_0,
                           [theta_0 + tau for tau in g.parts("tau")])  # fmt: skip
    g.check(steps[-1], g.part("out/theta"))


@pytest.mark.parametrize("name", ["pm", "pm_out_of_range", "pm_out_of_range_clamped"])
def test_golden_pm(golden: Callable[[str], Golden], name: str) -> None:
    g, told = golden(name), list[dict[str, float]]()
    alpha = rule("pm_alpha", clamp=g.meta["hparams"]["clamp"])
    steps = merge_recorded(alpha, g.part("theta0"), g.parts("theta"), g.parts("fisher"), told)
    for t, served in enumerate(steps):
        g.check(served, g.part(f"out/step/{t}/theta"))
    for scalar in ("alpha_raw", "alpha"):
        g.check([row[scalar] for row in told], g.array(f"out/{scalar}"))
    if name != "pm":
        assert not 0 <= told[2]["alpha_raw"] <= 1
        assert (0 <= told[2]["alpha"] <= 1) == g.meta["hparams"]["clamp"]


def test_golden_became_is_pm_at_the_second_task(golden: Callable[[str], Golden]) -> None:
    g = golden("became")
    before = g.part("fisher_first")
    for i in (1, 2):
        old, new, told = g.part(f"theta_gp/{i}"), g.part(f"theta_hat/{i}"), list[dict[str, float]]()
        fishers = [before, g.part(f"fisher_hat/{i}")]
        served = merge_recorded(rule("pm_alpha"), old.zeros(), [old, new], fishers, told)[1]
        g.check(served, g.part(f"out/step/{i}/theta"))
        g.check(told[1]["alpha_raw"], g.array("out/lam")[i - 1])
        before = g.part(f"out/step/{i}/fisher_old")


def test_golden_fisher_merging_is_the_free_minimum_of_pms_sums(golden: Callable[[str], Golden]) -> None:
    g = golden("fisher_merging_plain")
    thetas, alpha = g.parts("theta"), REGISTRY.rules["pm_alpha"]()
    theta_0 = thetas[0] * 0.5
    merge_recorded(alpha, theta_0, thetas, g.parts("fisher"))
    g.check(theta_0 + alpha.m / alpha.S, g.part("out/theta"))  # type: ignore[attr-defined]


def test_golden_files_are_all_read_by_some_test() -> None:
    tests = "".join(file.read_text() for file in Path(__file__).parent.rglob("test_*.py"))
    files = {file.stem for file in (Path(__file__).parent / "goldens").glob("*.npz")}
    assert len(files) == 37
    assert {name for name in files if f'"{name}"' not in tests} == set()


def test_a_fisher_that_is_not_there_is_named() -> None:
    models = Models.draw(0)
    with pytest.raises(UserError, match=r"task 1: the rule needs a Fisher \(empirical\)"):
        merge_recorded(rule("pm_alpha"), models.theta_0, models.thetas)
    with pytest.raises(UserError, match="reads images"):
        RecordedTask(2, *[models.theta_0] * 4).batches(1, 1)


# ---- what every rule keeps to --------------------------------------------------------------------------------------
def quick(key: str) -> Rule:
    """Few steps where a rule takes steps."""
    options = {"steps": 3} if "steps" in REGISTRY.rules[key].options() else {}
    return rule(key, **options)


every_rule = pytest.mark.parametrize("key", sorted(REGISTRY.rules))


@every_rule
def test_rules_change_none_of_their_inputs_and_repeat_bit_for_bit(key: str) -> None:
    models = Models.draw(0)
    task = models.task(3, models.thetas[1], models.thetas[0])

    def inputs() -> list[str]:
        held = [models.theta_0, *models.thetas, *models.fishers, task.start, task.served, *task.recorded["snapshots"]]
        return [w.digest() for w in held]

    before, out = inputs(), []
    for _ in range(2):
        fresh = quick(key)
        fresh.begin(models.theta_0)
        out.append(fresh.merge(task).digest())
    assert inputs() == before
    assert out[0] == out[1]
    assert [w.digest() for w in chain(quick(key), models)] == [w.digest() for w in chain(quick(key), models)]


@every_rule
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_served_weights_have_names_shapes_and_dtypes_of_theta_0(key: str, dtype: torch.dtype) -> None:
    models = Models.draw(0, dtype=dtype)
    for served in chain(quick(key), models):
        assert served.layout == models.theta_0.layout
        assert served.vector.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert {t.dtype for t in served.export().values()} == {dtype}
        assert not served.vector.requires_grad


@every_rule
def test_degenerate_inputs_give_finite_weights(key: str) -> None:
    models = Models.draw(0)
    zero, same = models.theta_0.zeros(), models.theta_0
    untouched = [theta.map(lambda v: torch.cat([v[:50], same.vector[50:]])) for theta in models.thetas]
    for thetas, fishers in (
        (models.thetas, [zero] * 4),
        ([same] * 4, models.fishers),
        ([same] * 4, [zero] * 4),
        (untouched, models.fishers),
        ([models.thetas[0]] * 4, models.fishers),
        ([theta * 1e-30 for theta in models.thetas], [f * 1e-300 for f in models.fishers]),
    ):
        served = chain(quick(key), Models(same, thetas, fishers))
        assert all(bool(torch.isfinite(w.vector).all()) for w in served)
        if thetas is untouched:
            assert all(torch.equal(w.vector[50:], same.vector[50:]) for w in served)


def reloaded(plugin: Plugin, folder: Path) -> Any:
    """A fresh plugin with the memory of this one, through the file that a resumed run reads."""
    tensors, tree = pack(plugin)
    save_tensors(folder / "memory.safetensors", tensors, {"tree": tree})
    kept = load_tensors(folder / "memory.safetensors")
    assert kept is not None
    fresh = type(plugin)(**{name: getattr(plugin, name) for name in plugin.options()})
    fresh.begin(plugin.pretrained)
    unpack(fresh, kept[0], kept[1]["tree"], plugin.pretrained)
    return fresh


@every_rule
def test_memory_saved_and_loaded_between_tasks_changes_no_bit(key: str, tmp_path: Path) -> None:
    models = Models.draw(1)
    whole, broken = chain(quick(key), models), chain(quick(key), models, between=lambda r: reloaded(r, tmp_path))
    assert [w.digest() for w in whole] == [w.digest() for w in broken]


@pytest.mark.parametrize(
    ("plugin", "vectors"),
    [("last", 0), ("average", 0), ("trm", 0), ("task_arithmetic", 1), ("pm_alpha", 2), ("oracle_scalar", 0),
     ("dare", 1), ("magmax", 1), ("randmix", 1), ("fisher", 2), ("coma", 0), ("cofima", 1), ("cmm_blend", 1),
     ("became", 1)],
)  # fmt: skip
def test_carried_bytes_do_not_grow_with_the_number_of_tasks(plugin: str, vectors: int) -> None:
    for T in (1, 4):
        models, kept = Models.draw(0, T), quick(plugin)
        chain(kept, models)
        assert nbytes(kept) == vectors * models.theta_0.nbytes


# ---- averages and task vectors -------------------------------------------------------------------------------------
@property_test
@given(seeds)
def test_after_one_task_rules_serve_what_was_trained(seed: int) -> None:
    models = Models.draw(seed, T=1)
    for key in ("last", "experts", "average", "pm_alpha", "oracle_scalar", "trm"):
        assert close(chain(quick(key), models)[0], models.thetas[0], 1e-14), key
    tau = models.thetas[0] - models.theta_0
    assert close(chain(rule("task_arithmetic", lam=0.7), models)[0], models.theta_0 + tau * 0.7)


@property_test
@given(seeds, st.permutations(range(4)))
def test_average_and_task_arithmetic_do_not_depend_on_the_order(seed: int, order: list[int]) -> None:
    models = Models.draw(seed)
    shuffled = [models.thetas[i] for i in order]
    for key in ("average", "task_arithmetic"):
        one, other = (merge_recorded(rule(key), models.theta_0, t)[-1] for t in (models.thetas, shuffled))
        assert close(one, other)


@property_test
@given(seeds)
def test_task_arithmetic_over_t_is_average_and_average_is_the_mean(seed: int) -> None:
    models = Models.draw(seed)
    mean = chain(rule("average"), models)
    over_t = chain(rule("task_arithmetic", lam=1.0, over_t=True), models, "pretrained")
    for t in range(1, 5):
        expected = sum(models.thetas[1:t], models.thetas[0]) / t
        assert close(mean[t - 1], expected)
        assert close(over_t[t - 1], expected)


@property_test
@given(seeds, st.floats(0, 2))
def test_what_a_task_vector_is_where_training_does_not_start_at_theta_0(seed: int, lam: float) -> None:
    models = Models.draw(seed)
    total, increment = (rule("task_arithmetic", lam=lam, delta=d) for d in ("total", "increment"))
    served = models.theta_0
    for t, got in enumerate(chain(increment, models, "merged")):
        served = served + (models.thetas[t] - served) * lam  # the blend that the increments telescope to
        assert close(got, served, 1e-10)
    summed = models.theta_0.zeros()
    for theta, got in zip(models.thetas, chain(total, models, "previous"), strict=True):
        summed = summed + (theta - models.theta_0)
        assert close(got, models.theta_0 + summed * lam, 1e-10)
    last = chain(rule("task_arithmetic", lam=lam, delta="increment"), models, "previous")[-1]
    assert close(last, models.theta_0 + (models.thetas[-1] - models.theta_0) * lam, 1e-10)  # increments telescope
    both = [chain(rule("task_arithmetic", lam=lam, delta=d), models, "pretrained")[-1] for d in ("total", "increment")]
    assert both[0].digest() == both[1].digest()


def test_defaults_of_delta_by_start() -> None:
    deltas = {s: REGISTRY.resolve(f"task_arithmetic@{s}").rule_options["delta"]
              for s in ("pretrained", "previous", "merged")}  # fmt: skip
    assert deltas == {"pretrained": "increment", "previous": "total", "merged": "increment"}


# ---- P&M: the coefficient ------------------------------------------------------------------------------------------
def alphas(models: Models, **options: Any) -> tuple[list[Weights], list[dict[str, float]]]:
    told: list[dict[str, float]] = []
    return merge_recorded(rule("pm_alpha", **options), models.theta_0, models.thetas, models.fishers, told), told


@property_test
@given(seeds, st.floats(-3, 3))
def test_running_sums_are_the_sum_over_stored_tasks(seed: int, exponent: float) -> None:
    models = Models.draw(seed)
    models.fishers = [f * 10**exponent for f in models.fishers]
    served, told = alphas(models, clamp=False)
    h = models.theta_0
    for t in range(4):
        D, pairs = models.thetas[t] - h, list(zip(models.thetas, models.fishers, strict=True))[: t + 1]
        raw = -sum((h - theta).dot(H * D) for theta, H in pairs) / sum(D.dot(H * D) for _, H in pairs)
        assert told[t]["alpha_raw"] == pytest.approx(raw, rel=1e-8)
        h = h + D * raw
        assert close(served[t], h, 1e-8)
    assert told[0]["alpha_raw"] == 1.0


@property_test
@given(seeds, st.booleans())
def test_alpha_minimises_the_quadratic_on_a_fine_grid(seed: int, clamp: bool) -> None:
    models = Models.draw(seed)
    served, told = alphas(models, clamp=clamp)
    h = models.theta_0
    for t in range(4):
        D, pairs = models.thetas[t] - h, list(zip(models.thetas, models.fishers, strict=True))[: t + 1]
        grid = np.linspace(0, 1, 401) if clamp else np.linspace(-2, 3, 401)
        points = h.vector + torch.from_numpy(grid)[:, None] * D.vector
        Q = sum((points - theta.vector) ** 2 @ H.vector for theta, H in pairs)
        assert abs(grid[int(torch.as_tensor(Q).argmin())] - told[t]["alpha"]) <= (grid[1] - grid[0]) / 2 + 1e-9
        h = served[t]
    if clamp:
        assert all(row["alpha"] == min(max(row["alpha_raw"], 0), 1) for row in told)


@property_test
@given(seeds, st.floats(1e-6, 1e6))
def test_a_common_factor_of_all_fishers_cancels(seed: int, factor: float) -> None:
    models = Models.draw(seed)
    scaled = replace(models, fishers=[f * factor for f in models.fishers])
    for options in ({"clamp": False}, {"per_module": True}, {"scale": "trace"}):
        one, other = alphas(models, **options), alphas(scaled, **options)
        assert [r["alpha_raw"] for r in one[1]] == pytest.approx([r["alpha_raw"] for r in other[1]], rel=1e-9)
        assert close(one[0][-1], other[0][-1], 1e-9)


@property_test
@given(seeds)
def test_the_same_fisher_for_all_tasks_gives_one_over_t_and_the_average(seed: int) -> None:
    models = Models.draw(seed)
    served, told = alphas(replace(models, fishers=[models.fishers[0]] * 4))
    assert [r["alpha_raw"] for r in told] == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4], rel=1e-10)
    for got, mean in zip(served, chain(rule("average"), models), strict=True):
        assert close(got, mean, 1e-10)


def test_trace_scaling_undoes_a_factor_of_one_task() -> None:
    models = Models.draw(3)
    lopsided = replace(models, fishers=[f * c for f, c in zip(models.fishers, (1, 100, 1e-3, 7), strict=True)])
    even, plain = (alphas(lopsided, scale=s, clamp=False)[0][-1] for s in ("trace", "none"))
    assert close(even, alphas(models, scale="trace", clamp=False)[0][-1], 1e-10)
    assert not close(plain, even, 1e-2)


def test_per_module_is_an_alpha_for_each_tensor_and_global_where_there_is_one() -> None:
    models = Models.draw(4)
    served, _ = alphas(models, per_module=True, clamp=False)

    def only(name: str) -> Models:
        cut = [Weights.of({name: w.tensors()[name]}) for w in (models.theta_0, *models.thetas, *models.fishers)]
        return Models(cut[0], cut[1:5], cut[5:])

    for name in SHAPES:
        alone, _ = alphas(only(name), per_module=False, clamp=False)
        torch.testing.assert_close(served[-1].tensors()[name], alone[-1].tensors()[name], rtol=1e-10, atol=1e-12)
        assert close(alphas(only(name), per_module=True, clamp=False)[0][-1], alone[-1], 1e-14)
    assert not close(served[-1], alphas(models, clamp=False)[0][-1], 1e-2)


@pytest.mark.parametrize("per_module", [False, True])
def test_flat_directions_and_no_direction(per_module: bool) -> None:
    models = Models.draw(5)
    zero = models.theta_0.zeros()
    served, told = alphas(replace(models, fishers=[zero] * 4), per_module=per_module)
    assert [r["alpha"] for r in told] == pytest.approx([1 / t for t in (1, 2, 3, 4)])
    assert all(r["flat"] == 1 for r in told)
    assert close(served[-1], chain(rule("average"), models)[-1])
    still = replace(models, thetas=[models.thetas[0]] * 4)
    served, told = alphas(still, per_module=per_module)
    assert served[1].digest() == served[2].digest() == served[0].digest()
    # D is zero up to the rounding of h + (theta - h), so theta = h is asked for exactly:
    alpha = rule("pm_alpha", per_module=per_module)
    alpha.begin(models.theta_0)
    task = Toy(1, models.theta_0, models.theta_0, models.theta_0, models.theta_0, {}, {"empirical": models.fishers[0]})
    assert alpha.merge(task).digest() == models.theta_0.digest()
    assert task.scalars["alpha"] == 0
    assert task.scalars["flat"] == 0


# ---- P&M: the perturbation -----------------------------------------------------------------------------------------
@property_test
@given(seeds, st.floats(0.01, 2))
def test_the_mean_of_the_three_losses_is_the_second_order_formula(seed: int, eps: float) -> None:
    start, theta, best, H = noise(seed), noise(seed + 1), noise(seed + 2), noise(seed + 3) ** 2
    perturb, rng, delta = trainer("perturb", eps=eps), np.random.default_rng(seed), theta - start

    def loss(w: Weights) -> float:
        return (w - best).dot(H * (w - best)) / 2

    points = [perturb.weights(theta, start, rng) for _ in range(60)]
    losses = sorted({round(loss(p), 9): loss(p) for p in points}.values())
    assert len(losses) == 3  # no other point than these
    for sign in (-1, 0, 1):
        assert any(close(p, theta + delta * (sign * eps), 1e-10) for p in points)
    expected = loss(theta) + eps**2 / 3 * delta.dot(H * delta)
    assert sum(losses) / 3 == pytest.approx(expected, rel=1e-9)


def test_the_three_draws_are_equally_likely() -> None:
    perturb, rng = trainer("perturb", eps=0.5), np.random.default_rng(0)
    start, theta = noise(0).zeros(), noise(0) * 0 + 1
    draws = np.array([float(perturb.weights(theta, start, rng).vector[0]) for _ in range(3000)])
    for value in (0.5, 1.0, 1.5):
        assert abs((draws == value).mean() - 1 / 3) < 0.03


def test_the_gradient_flows_through_the_scaled_difference() -> None:
    perturb, rng, start = trainer("perturb", eps=0.5), np.random.default_rng(0), noise(0)
    seen = set()
    for _ in range(20):
        theta = noise(1).map(lambda v: v.requires_grad_())
        perturb.weights(theta, start, rng).sum().backward()
        assert theta.vector.grad is not None
        [slope] = set(theta.vector.grad.tolist())
        seen.add(slope)
    assert seen == {0.5, 1.0, 1.5}


@property_test
@given(seeds, st.floats(0.01, 2))
def test_gaussian_noise_has_deltas_norm_in_every_tensor(seed: int, eps: float) -> None:
    start = noise(seed)
    theta = start + noise(seed + 1, 0.1)
    theta = theta.map(lambda v: torch.cat([v[:50], start.vector[50:]]))  # two tensors have not moved
    gauss, rng = trainer("gauss", eps=eps), np.random.default_rng(seed)
    moved = [gauss.weights(theta, start, rng) - theta for _ in range(30)]
    for step in moved:
        if not bool(step.vector.any()):
            continue
        torch.testing.assert_close(step.norms(), eps * (theta - start).norms(), rtol=1e-9, atol=1e-12)
        assert not bool(step.vector[50:].any())
        assert abs(step.dot(theta - start)) < 0.95 * step.norm() * (theta - start).norm()  # not Delta's direction
    assert len({step.digest() for step in moved}) > 2


def test_gaussian_noise_where_nothing_has_moved_is_finite_with_its_gradient() -> None:
    gauss, rng, start = trainer("gauss", eps=0.5), np.random.default_rng(0), noise(0, dtype=torch.float32)
    for _ in range(6):
        theta = start.map(lambda v: v.clone().requires_grad_())
        point = gauss.weights(theta, start, rng)
        assert torch.equal(point.vector.detach(), start.vector)
        (point * point).sum().backward()
        assert theta.vector.grad is not None
        assert bool(torch.isfinite(theta.vector.grad).all())


# ---- EWC -----------------------------------------------------------------------------------------------------------
def begun(models: Models, upto: int, **options: Any) -> Any:
    """EWC after the first ``upto`` tasks."""
    ewc = trainer("ewc", **options)
    ewc.begin(models.theta_0)
    for t in range(1, upto + 1):
        ewc.learnt(models.task(t, models.theta_0))
    return ewc


def explicit(theta: Weights, pairs: list[tuple[Weights, Weights]], lam: float) -> Tensor:
    """lam/2 sum_i F_i (theta - theta_i)^2, from what a method with O(T) memory would have stored."""
    return lam / 2 * sum((((theta - anchor) ** 2) * F).sum() for anchor, F in pairs)  # type: ignore[return-value]


@property_test
@given(seeds, st.integers(0, 4), st.floats(0.01, 1e4))
def test_ewcs_running_sums_are_the_sum_over_stored_tasks(seed: int, upto: int, lam: float) -> None:
    models = Models.draw(seed)
    ewc = begun(models, upto, lam=lam)
    pairs = list(zip(models.thetas, models.fishers, strict=True))[:upto]
    values, gradients = [], []
    for penalty in (ewc.penalty, lambda w: explicit(w, pairs, lam)):
        theta = noise(seed + 50).map(lambda v: v.requires_grad_())
        value = penalty(theta) + 0 * theta.sum()
        value.backward()
        values.append(value.item())
        gradients.append(theta.vector.grad)
    assert values[0] == pytest.approx(values[1], rel=1e-9)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-9, atol=1e-9 * lam)


def test_ewcs_gradient_reaches_loras_factors_through_the_dense_weight() -> None:
    models = Models.draw(1)
    names = ("a", "b")  # the matrices
    cut = [Weights.of({n: w.tensors()[n] for n in names}) for w in (models.theta_0, *models.thetas, *models.fishers)]
    pairs = list(zip(cut[1:4], cut[5:8], strict=True))
    ewc = trainer("ewc", lam=3.0)
    ewc.begin(cut[0])
    for t, (theta, F) in enumerate(pairs, 1):
        ewc.learnt(RecordedTask(t, cut[0], cut[0], cut[0], theta, {}, {"empirical": F}))
    gradients = []
    for penalty in (ewc.penalty, lambda w: explicit(w, pairs, 3.0)):
        generator = torch.Generator().manual_seed(0)
        factors = {n: (torch.randn(2, SHAPES[n][1], generator=generator, dtype=torch.float64),
                       torch.randn(SHAPES[n][0], 2, generator=generator, dtype=torch.float64))
                   for n in names}  # fmt: skip
        lora = LoRA(factors, cut[0], 0.5)
        penalty(lora.weights()).backward()
        gradients.append([p.grad for p in lora.parameters])
    assert len(gradients[0]) == 4
    for got, expected in zip(*gradients, strict=True):
        assert bool(expected.any())
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


@property_test
@given(seeds, st.floats(0.1, 1))
def test_online_ewc_is_separate_at_the_second_task_and_decays_afterwards(seed: int, gamma: float) -> None:
    models, theta = Models.draw(seed), noise(seed + 50)
    one, other = (begun(models, 1, lam=2.0, form=f) for f in ("separate", "online"))
    assert float(one.penalty(theta)) == pytest.approx(float(other.penalty(theta)), rel=1e-12)
    later = begun(models, 3, lam=2.0, form="online", gamma=gamma)
    F = models.fishers[0] * gamma**2 + models.fishers[1] * gamma + models.fishers[2]
    assert float(later.penalty(theta)) == pytest.approx(float(explicit(theta, [(models.thetas[2], F)], 2.0)), rel=1e-9)


@property_test
@given(seeds, st.integers(1, 4))
def test_online_ewc_and_its_gradient_vanish_at_the_anchor(seed: int, upto: int) -> None:
    models = Models.draw(seed)
    ewc = begun(models, upto, lam=5.0, form="online", gamma=0.9)
    theta = models.thetas[upto - 1].map(lambda v: v.clone().requires_grad_())
    value = ewc.penalty(theta)
    value.backward()
    assert theta.vector.grad is not None
    scale = float(ewc.penalty(models.theta_0))
    assert abs(value.item()) < 1e-12 * scale
    assert float(theta.vector.grad.abs().max()) < 1e-12 * scale
    assert float(ewc.penalty(models.thetas[upto - 1] + 0.01)) > 0


def test_ewcs_memory_is_two_vectors_and_survives_a_file(tmp_path: Path) -> None:
    models = Models.draw(2)
    for form in ("separate", "online"):
        ewc = begun(models, 3, lam=1.0, form=form)
        assert nbytes(ewc) == 2 * models.theta_0.nbytes
        assert float(reloaded(ewc, tmp_path).penalty(noise(9))) == float(ewc.penalty(noise(9)))


def test_a_stored_training_of_ewc_is_named_after_its_fishers_sample() -> None:
    request = {"dataset": "digits", "n_tasks": 2, "protocol": "embedded", "method": "ewc", "class_order_seed": 0,
               "run_seed": 0, "eval_split": "test"}  # fmt: skip
    few, many = (cell_of({**request, "overrides": {"fisher_samples": n}}, REGISTRY, []) for n in (8, 2048))
    assert few.train_keys[1] == many.train_keys[1]
    assert few.train_keys[2] != many.train_keys[2]


# ---- TRM: the subspace ---------------------------------------------------------------------------------------------
TRM: Any = REGISTRY.rules["trm"]
trajectory_basis: Callable[[Any], tuple[Tensor, Tensor]] = TRM.merge.__globals__["trajectory_basis"]
Objective: Any = TRM.merge.__globals__["Objective"]


def toy(seed: int = 0, t: int = 3, scale: float = 0.3) -> Toy:
    """Task t where training moved by about ``scale`` in every entry."""
    theta_0 = noise(seed, 0.5)
    served = theta_0 + noise(seed + 1, scale)
    models = Models(theta_0, [served + noise(seed + 2 + i, scale) for i in range(t)], [theta_0.zeros()] * t)
    return models.task(t, served)


def layers(basis: Tensor) -> Iterator[Tensor]:
    """The basis (J, n_l) of each layer."""
    yield from basis.split([int(np.prod(s)) for s in SHAPES.values()], dim=1)


@pytest.mark.parametrize("t", [2, 3, 9])
@property_test
@given(seed=seeds)
def test_trm_without_steps_is_the_running_average(t: int, seed: int) -> None:
    task = toy(seed, t)
    assert close(TRM(steps=0).merge(task), rule("average").merge(task), 1e-14)


@property_test
@given(seeds)
def test_trms_basis_is_orthonormal_in_every_layer_and_spans_the_trajectory(seed: int) -> None:
    task = toy(seed)
    basis, s = trajectory_basis(task)
    assert basis.shape == (5, 54)
    candidates = [task.trained - task.served, task.served - task.pretrained]
    candidates += [w - task.served for w in task.recorded["snapshots"][-2::-1]]
    for i, (v, u) in enumerate(zip(layers(basis), zip(*(c.tensors().values() for c in candidates), strict=True),
                                   strict=True)):  # fmt: skip
        kept = s[:, i] != 0
        torch.testing.assert_close(v @ v.T, torch.diag(kept.to(v)), rtol=0, atol=1e-6)
        assert int(kept.sum()) == min(5, v.shape[1])  # layer c has four entries
        torch.testing.assert_close(v[0], u[0].reshape(-1) / u[0].norm(), rtol=0, atol=1e-9)
        assert set(s[:, i].tolist()) <= {0.0, float(s[0, i])}
        assert float(s[0, i]) == pytest.approx(float(u[0].norm()))
        for candidate in u:
            flat = candidate.reshape(-1)
            assert float((flat - v.T @ (v @ flat)).norm()) < 1e-3 * float(flat.norm())


def test_trms_result_lies_in_the_span() -> None:
    task = toy()
    moved = TRM(steps=30).merge(task) - task.served
    for v, delta in zip(layers(trajectory_basis(task)[0]), moved.tensors().values(), strict=True):
        flat = delta.reshape(-1)
        assert float((flat - v.T @ (v @ flat)).norm()) < 1e-9 * float(flat.norm())
    average = rule("average").merge(task)
    assert not close(task.served + moved, average, 1e-3)


def test_duplicate_snapshots_drop_out_and_change_nothing() -> None:
    task = toy()
    first, second, third, last = task.recorded["snapshots"]
    nearly = third + noise(3, 1e-9)
    twice = replace_snapshots(task, [first, first, second, second, third, nearly, last, last])
    (one, s_one), (two, s_two) = trajectory_basis(task), trajectory_basis(twice)
    for i, (v, w) in enumerate(zip(layers(one), layers(two), strict=True)):
        assert int((s_one[:, i] != 0).sum()) == int((s_two[:, i] != 0).sum())
        torch.testing.assert_close(v.T @ v, w.T @ w, rtol=0, atol=1e-6)
    assert close(TRM(steps=20).merge(twice), TRM(steps=20).merge(task), 1e-6)


def replace_snapshots(task: Toy, snapshots: list[Weights]) -> Toy:
    return Toy(task.t, task.pretrained, task.start, task.served, task.trained, {"snapshots": snapshots})


def test_a_layer_that_training_left_alone_keeps_h() -> None:
    task = toy()
    keep = slice(30, 50)  # all of layer b
    back = [w.map(lambda v: torch.cat([v[:30], task.served.vector[keep], v[50:]]))
            for w in (task.trained, *task.recorded["snapshots"][:-1])]  # fmt: skip
    still = Toy(task.t, task.pretrained, task.start, task.served, back[0], {"snapshots": [*back[1:], back[0]]})
    merged = TRM(steps=5).merge(still)
    assert torch.equal(merged.vector[keep], task.served.vector[keep])
    assert not torch.equal(merged.vector[:30], task.served.vector[:30])
    assert not bool(trajectory_basis(still)[1][:, 1].any())


# ---- TRM: the objective --------------------------------------------------------------------------------------------
def by_autograd(objective: Any, task: Toy, a: Tensor) -> dict[str, Tensor]:
    """Gradients of the three terms on the first batch, L_grad's by double backward."""
    r, (x, y) = objective.rule, next(task.batches(objective.rule.batch, 1, labelled=True))
    target = "current" if r.grad_target == "current" else "fresh"
    a = a.detach().clone().requires_grad_()
    weights = objective.at(a)
    align = cross_entropy(task.logits(weights, x), y)
    teacher, student = (log_softmax(task.logits(w, x, "old") / r.tau, -1) for w in (task.served, weights))
    cons = r.tau**2 * kl_div(student, teacher.detach(), log_target=True, reduction="batchmean")
    measured = cross_entropy(task.logits(weights, x, target), y)
    g = torch.autograd.grad(measured, a, create_graph=True)[0]
    hinge = (1 - g.norm() / (r.rho * objective.g_ref)).clamp_min(0) ** 2
    return {name: torch.autograd.grad(term, a, retain_graph=True)[0]
            for name, term in (("align", align), ("cons", cons), ("grad", hinge))}  # fmt: skip


@pytest.mark.parametrize("grad_target", ["current", "fresh_head"])
@pytest.mark.parametrize(("lambda_c", "lambda_g"), [(0.0, 0.0), (0.7, 0.0), (0.0, 0.4), (1.3, 0.2)])
def test_trms_gradient_is_that_of_its_three_terms(
    lambda_c: float, lambda_g: float, grad_target: str, record_property: Record
) -> None:
    task = toy(scale=0.1)
    r = TRM(batch=16, steps=1, lambda_c=lambda_c, lambda_g=lambda_g, rho=20.0, grad_target=grad_target)
    basis, s = trajectory_basis(task)
    objective = Objective(r, task, basis, s)
    a = objective.initial + 0.3 * torch.randn(s.shape, generator=torch.Generator().manual_seed(1), dtype=s.dtype)
    a = a.requires_grad_()
    objective.loss(a, 0).backward()
    assert a.grad is not None
    if lambda_g:
        zero = torch.zeros_like(s)
        norms = [objective.g(zero, x, y).norm() for x, y in task.batches(16, 8, labelled=True)]
        assert objective.g_ref == pytest.approx(float(torch.stack(norms).mean()))
        assert objective.told["hinge_active"] == 1
    else:
        objective.g_ref = 1.0
    terms = by_autograd(objective, task, a)
    expected = terms["align"] + lambda_c * terms["cons"] + lambda_g * terms["grad"]
    error = float((a.grad - expected).norm() / expected.norm())
    record_property("relative_error", error)
    assert error < (1e-4 if lambda_g else 1e-12)
    assert all(float(term.norm()) > 1e-3 * float(terms["align"].norm()) for term in terms.values())


def test_the_hessian_vector_product_by_differences_is_the_exact_one(record_property: Record) -> None:
    task = toy(scale=0.1)
    basis, s = trajectory_basis(task)
    objective = Objective(TRM(batch=16, steps=1, lambda_c=0.0, lambda_g=1.0, rho=20.0), task, basis, s)
    a = objective.initial.clone().requires_grad_()
    objective.loss(a, 0).backward()
    terms = by_autograd(objective, task, a)
    assert a.grad is not None
    error = float((a.grad - terms["align"] - terms["grad"]).norm() / terms["grad"].norm())
    record_property("relative_error", error)
    assert error < 1e-3


def test_a_weight_of_zero_removes_its_term() -> None:
    """Then nothing else about the term matters, to the last bit."""
    task = toy()
    for off, other in (({"lambda_c": 0.0}, {"tau": 7.0}), ({"lambda_g": 0.0}, {"rho": 50.0})):
        one, two = TRM(steps=5, **off).merge(task), TRM(steps=5, **off, **other).merge(task)
        assert one.digest() == two.digest()
        on = dict.fromkeys(off, 1.0)
        assert TRM(steps=5, rho=20.0, **on).merge(task).digest() != TRM(steps=5, rho=20.0, **off).merge(task).digest()


def test_a_hinge_that_is_never_active_changes_no_bit() -> None:
    told = []
    for options in ({"lambda_g": 0.0}, {"rho": 0.0}, {"rho": 1e-9}, {"rho": 50.0}):
        task = toy()
        merged = TRM(steps=5, **options).merge(task)
        told.append((merged.digest(), task.scalars.get("hinge_active")))
    assert [d == told[0][0] for d, _ in told] == [True, True, True, False]
    assert told[2][1] == 0
    assert told[3][1] == 1


def test_minimise_is_adam_and_returns_the_last_iterate() -> None:
    def bowl(a: Tensor, step: int) -> Tensor:
        return ((a - torch.tensor([1.0, -2.0])) ** 2).sum() * (1 + step % 2)

    initial = torch.zeros(2)
    assert torch.equal(minimise(bowl, initial, 0, 0.1), initial)
    assert minimise(bowl, initial, 0, 0.1) is not initial
    reference = torch.zeros(2, requires_grad=True)
    adam = torch.optim.Adam([reference], lr=0.1)
    for step in range(7):
        adam.zero_grad()
        bowl(reference, step).backward()
        adam.step()
    assert torch.equal(minimise(bowl, initial, 7, 0.1), reference.detach())
    torch.testing.assert_close(minimise(bowl, initial, 400, 0.1), torch.tensor([1.0, -2.0]), rtol=0, atol=1e-2)
    assert not bool(initial.any())
    assert not initial.requires_grad


# ---- on real images ------------------------------------------------------------------------------------------------
@dataclass
class Live:
    """Two tasks of digits, each trained for ten steps, the second from the first."""

    stream: Stream
    backbone: Backbone
    protocol: ProtocolConfig
    store: Store
    learnt: list[Learnt]

    def task(self, t: int = 2, data: str = "labelled") -> LiveTask:
        theta_0, mine = self.backbone.pretrained, self.learnt[t - 1]
        before = theta_0 if t == 1 else self.learnt[0].weights
        heads = [head for learnt in self.learnt[:t] for head in learnt.heads]
        return LiveTask(data, self.stream, self.stream.tasks[t - 1], self.backbone, self.protocol, heads, 0,
                        self.store, theta_0, before, before, mine.weights, mine.recorded)  # fmt: skip

    def train(self, how: Trainer, t: int = 2) -> Learnt:
        start = self.backbone.pretrained if t == 1 else self.learnt[0].weights
        return train(self.backbone, self.stream, [self.stream.tasks[t - 1]], how, start, self.protocol, 0,
                     ("snapshots:4",))  # fmt: skip


@pytest.fixture(scope="module")
def live(
    stream: Stream, backbone: Backbone, protocol: ProtocolConfig, tmp_path_factory: pytest.TempPathFactory
) -> Live:
    few = protocol.model_copy(update={"fisher_samples": 64})
    made = Live(stream, backbone, few, Store(tmp_path_factory.mktemp("store")), [])
    for t in (1, 2):
        made.learnt.append(made.train(Trainer(), t))
    return made


@pytest.mark.parametrize("key", ["perturb", "gauss"])
def test_no_perturbation_is_plain_training_to_the_last_bit(live: Live, key: str) -> None:
    none, some = (live.train(trainer(key, eps=eps)).weights.digest() for eps in (0.0, 0.5))
    assert none == live.learnt[1].weights.digest()
    assert some != none


def test_ewc_without_strength_is_plain_training_and_with_it_stays_closer(live: Live) -> None:
    anchor, plain = live.learnt[0].weights, live.learnt[1].weights
    moved = []
    for lam in (0.0, 100.0, 1e5):
        ewc = trainer("ewc", lam=lam)
        ewc.begin(live.backbone.pretrained)
        ewc.learnt(live.task(1))
        assert float(ewc.S.sum()) > 0
        learnt = live.train(ewc).weights
        assert (learnt.digest() == plain.digest()) == (lam == 0)
        moved.append((learnt - anchor).dot(ewc.S * (learnt - anchor)))
    assert moved[0] > moved[1] > moved[2]


def objective_on_fixed_batches(live: Live, weights: Weights) -> float:
    task = live.task()
    total = 0.0
    with torch.no_grad():
        for x, y in task.batches(64, 8, labelled=True):
            teacher, student = (log_softmax(task.logits(w, x, "old") / 2, -1) for w in (task.served, weights))
            total += float(cross_entropy(task.logits(weights, x), y))  # type: ignore[arg-type]
            total += 4 * float(kl_div(student, teacher, log_target=True, reduction="batchmean"))
    return total / 8


def test_trm_lowers_its_objective_from_the_average_on(live: Live, record_property: Record) -> None:
    average = TRM(steps=0).merge(live.task())
    task = live.task()
    merged = TRM(steps=20, lambda_g=0.0).merge(task)
    before, after = (objective_on_fixed_batches(live, w) for w in (average, merged))
    record_property("objective_before_and_after", f"{before:.4f} {after:.4f}")
    assert after < before
    assert close(average, rule("average").merge(live.task()), 1e-6)
    assert task.scalars["merge_steps"] == 20
    assert TRM(steps=2).merge(live.task()).digest() == TRM(steps=2).merge(live.task()).digest()


def test_trms_hinge_on_real_images(live: Live) -> None:
    off, tight = live.task(), live.task()
    without = TRM(steps=3, lambda_g=0.0).merge(off)
    with_it = TRM(steps=3, lambda_g=1.0, rho=50.0).merge(tight)
    assert tight.scalars["hinge_active"] == 1
    assert tight.scalars["g_ref"] > 0
    assert with_it.digest() != without.digest()


# ---- a rule reads what it declares, no more ------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("data", "refused"),
    [("none", "images labels validation"), ("unlabelled", "labels validation"), ("labelled", "validation"),
     ("oracle", "")],
)  # fmt: skip
def test_a_task_refuses_what_was_not_declared(live: Live, data: str, refused: str) -> None:
    task, theta = live.task(data=data), live.backbone.pretrained
    wishes: list[tuple[str, Callable[[], object]]] = [
        ("images", lambda: next(task.batches(8, 1))),
        ("labels", lambda: next(task.batches(8, 1, labelled=True))),
        ("labels", lambda: task.fisher("empirical")),
        ("images", lambda: task.fisher("exact")),
        ("validation", lambda: task.accuracy(theta)),
    ]
    for what, ask in wishes:
        if what in refused.split():
            with pytest.raises(PermissionError, match=rf"declares data='{data}' may not read {what}"):
                ask()
        else:
            ask()


def test_merge_batches_have_one_size_the_tasks_own_images_and_columns_of_its_head(live: Live) -> None:
    task = live.task()
    n = len(task.current.train)
    batches = list(task.batches(64, 25, labelled=True))
    assert len(batches) == 25  # more than two epochs
    assert {len(x) for x, _ in batches} == {64}
    assert {int(c) for _, y in batches for c in y} == set(range(5))  # type: ignore[union-attr]
    own = {bytes(image.numpy()) for image in live.stream.train_images[task.current.train]}
    assert all(bytes(image.numpy()) in own for x, _ in batches[:3] for image in x)
    for (x, _), (again, y) in zip(batches, task.batches(64, 25), strict=True):
        assert torch.equal(x, again)
        assert y is None
    assert [len(x) for x, _ in task.batches(10 * n, 2)] == [n, n]


def test_logits_of_old_current_and_seen_heads_are_parts_of_one_another(live: Live) -> None:
    task, x = live.task(), live.stream.train_images[:9]
    old, current, seen, fresh = (task.logits(task.trained, x, h) for h in ("old", "current", "seen", "fresh"))
    torch.testing.assert_close(torch.cat([old, current], dim=1), seen, rtol=0, atol=1e-6)
    assert fresh.shape == current.shape
    assert not torch.equal(fresh, current)
    assert torch.equal(fresh, task.logits(task.trained, x, "fresh"))
    with pytest.raises(ValueError, match="unknown heads 'all'"):
        task.logits(task.trained, x, "all")


def test_a_rules_random_streams_are_named_by_purpose(live: Live) -> None:
    draws = {(t, p): live.task(t).rng(p).integers(2**60) for t in (1, 2) for p in ("mask", "noise")}
    assert len(set(draws.values())) == 4
    assert live.task(1).rng("mask").integers(2**60) == draws[1, "mask"]
