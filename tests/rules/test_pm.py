"""P&M: its coefficient and its perturbation against their definitions written out naively."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.method.recorded import merge_recorded
from bench.method.weights import Weights
from tests.helpers.toy import SHAPES, Models, Toy, chain, close, noise, property_test, rule, seeds, trainer

Record = Callable[[str, object], None]


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
    task = Toy(1, models.theta_0, models.theta_0, models.theta_0, models.theta_0, {}, {"fisher": models.fishers[0]})
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
