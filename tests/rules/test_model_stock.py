"""Model Stock against all pairs of angles, and against the geometry it is derived from."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.method.carried import nbytes
from bench.method.recorded import merge_recorded
from bench.method.weights import Weights
from tests.helpers.toy import Models, chain, close, property_test, rule, seeds


def by_hand(theta_0: Weights, thetas: list[Weights]) -> Weights:
    k, out = len(thetas), {}
    for name, origin in theta_0.items():
        changes = [theta.tensors()[name] - origin for theta in thetas]
        cosines = [float((a * b).sum() / (a.norm() * b.norm())) for a, b in combinations(changes, 2)]
        cos = max(0.0, sum(cosines) / len(cosines))
        ratio = k * cos / ((k - 1) * cos + 1)
        out[name] = origin + ratio * sum(changes) / k
    return theta_0.with_tensors(out)


@property_test
@given(seeds, st.floats(-2, 2))
def test_the_streamed_angle_is_the_mean_over_all_pairs(seed: int, together: float) -> None:
    models = Models.draw(seed)
    models.thetas = [theta + models.fishers[0] * together * 0.3 for theta in models.thetas]
    served = chain(rule("model_stock"), models, "pretrained")
    assert close(served[0], models.thetas[0], 1e-15)
    for t in range(2, 5):
        assert close(served[t - 1], by_hand(models.theta_0, models.thetas[:t]), 1e-10)


def test_on_a_shell_it_is_the_point_of_the_plane_nearest_to_the_centre() -> None:
    """theta_i = mu + e_i with equal lengths and right angles, mu perpendicular to them: the paper's picture."""
    basis = torch.eye(4, dtype=torch.float64)
    mu, shell = 3 * basis[0], [2 * basis[i] for i in (1, 2, 3)]
    thetas = [Weights.of({"w": mu + e}) for e in shell]
    got = merge_recorded(rule("model_stock"), thetas[0].zeros(), thetas)[-1]
    points = torch.stack([mu + e for e in shell])  # span them with theta_0 = 0
    nearest = points.T @ torch.linalg.solve(points @ points.T, points @ mu)
    torch.testing.assert_close(got.vector, nearest)


@property_test
@given(seeds, st.permutations(range(4)))
def test_equal_models_stay_and_the_order_does_not_matter(seed: int, order: list[int]) -> None:
    models = Models.draw(seed)
    same = replace(models, thetas=[models.thetas[1]] * 4)
    assert all(close(served, models.thetas[1], 1e-10) for served in chain(rule("model_stock"), same, "pretrained"))
    shuffled = replace(models, thetas=[models.thetas[i] for i in order])
    one, other = (chain(rule("model_stock"), m, "pretrained")[-1] for m in (models, shuffled))
    assert close(one, other, 1e-10)


def test_opposite_tasks_return_to_theta_0_and_an_unmoved_tensor_stays() -> None:
    models = Models.draw(0, 2)
    tau = models.thetas[0] - models.theta_0
    tau = tau.with_tensors({"c": torch.zeros(4)})
    models.thetas = [models.theta_0 + tau, models.theta_0 - tau]
    served = chain(rule("model_stock"), models, "pretrained")
    assert torch.equal(served[1].vector, models.theta_0.vector)


def test_what_it_carries_does_not_grow() -> None:
    sizes = []
    for T in (1, 4):
        stock = rule("model_stock")
        chain(stock, Models.draw(0, T))
        sizes.append(nbytes(stock))
    assert sizes[0] == sizes[1] == 2 * Models.draw(0).theta_0.nbytes + 3 * 8
    assert sizes[0] == pytest.approx(2 * Models.draw(0).theta_0.nbytes, rel=0.05)
