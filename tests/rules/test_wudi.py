"""WUDI-Merging against Adam on the objective as it is written, with every task vector at hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bench.method.carried import nbytes
from bench.method.recorded import merge_recorded
from bench.method.weights import Weights
from tests.helpers.toy import Models, chain, close, property_test, rule, seeds


def objective(tau: Tensor, taus: list[Tensor]) -> Tensor:
    parts = [((tau - own) @ own.T).square().sum() / own.square().sum() for own in taus if own.any()]
    return torch.stack(parts).sum()


def naive(taus: list[Tensor], steps: int, lr: float) -> Tensor:
    tau = torch.stack(taus).sum(0).requires_grad_()
    optimiser = torch.optim.Adam([tau], lr=lr)
    for _ in range(steps):
        optimiser.zero_grad()
        objective(tau, taus).backward()
        optimiser.step()
    return tau.detach()


@property_test
@given(seeds, st.integers(2, 4), st.sampled_from([1e-5, 1e-2]), st.booleans())
def test_the_running_sums_lead_to_the_minimiser_of_the_objective(seed: int, T: int, lr: float, low_rank: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    shape, rank = (8, 30), 2 if low_rank else 8

    def draw() -> Tensor:
        return (torch.randn(8, rank, generator=generator) @ torch.randn(rank, 30, generator=generator)).double()

    theta_0 = torch.randn(shape, generator=generator, dtype=torch.float64)
    taus, scalars = [draw() for _ in range(T)], list[dict[str, float]]()
    trained = [Weights.of({"w": theta_0 + tau, "b": tau[0]}) for tau in taus]
    base = Weights.of({"w": theta_0, "b": torch.zeros(30).double()})
    wudi = rule("wudi", steps=40, lr=lr)
    got = (merge_recorded(wudi, base, trained, scalars=scalars)[-1] - base).tensors()
    expected = naive(taus, 40, lr)
    start = torch.stack(taus).sum(0)
    torch.testing.assert_close(got["w"] - start, expected - start, rtol=1e-5, atol=1e-7 * lr / 1e-5)
    torch.testing.assert_close(got["b"], torch.stack(taus).mean(0)[0])
    assert scalars[-1]["loss_before"] == pytest.approx(float(objective(start, taus)), rel=1e-9)
    assert scalars[-1]["loss_after"] == pytest.approx(float(objective(expected, taus)), rel=1e-5)
    assert scalars[-1]["loss_after"] < scalars[-1]["loss_before"]


def test_after_one_task_the_task_vector_is_at_the_minimum_already() -> None:
    models = Models.draw(0)
    assert close(chain(rule("wudi"), models)[0], models.thetas[0], 1e-14)


def test_many_steps_reach_every_task_where_its_inputs_are_its_own() -> None:
    """Row spaces that are orthogonal: the sum serves every task, and the objective is 0 at it and stays so."""
    taus = [torch.zeros(4, 6, dtype=torch.float64) for _ in range(2)]
    taus[0][:, 0], taus[1][:, 3] = 1.0, 2.0
    base = Weights.of({"w": torch.zeros(4, 6, dtype=torch.float64)})
    got = merge_recorded(rule("wudi", lr=0.1), base, [Weights.of({"w": tau}) for tau in taus])[-1]
    torch.testing.assert_close(got.tensors()["w"], taus[0] + taus[1])


def test_a_task_that_left_a_matrix_alone_has_no_part_in_it() -> None:
    models = Models.draw(1, T=3)
    still = models.thetas[1].with_tensors({"a": models.theta_0.tensors()["a"]})
    got = merge_recorded(rule("wudi", lr=1e-3), models.theta_0, [models.thetas[0], still, models.thetas[2]])[-1]
    taus = [(theta - models.theta_0).tensors()["a"] for theta in (models.thetas[0], models.thetas[2])]
    expected = naive(taus, 300, 1e-3)
    torch.testing.assert_close((got - models.theta_0).tensors()["a"], expected, rtol=1e-6, atol=1e-8)


@property_test
@given(seeds, st.permutations(range(4)))
def test_the_order_does_not_matter_and_nothing_grows_with_the_tasks(seed: int, order: list[int]) -> None:
    models, one = Models.draw(seed), rule("wudi", steps=20)
    served = merge_recorded(one, models.theta_0, models.thetas)[-1]
    other = merge_recorded(rule("wudi", steps=20), models.theta_0, [models.thetas[i] for i in order])[-1]
    assert close(served, other, 1e-7)
    first = rule("wudi", steps=20)
    merge_recorded(first, models.theta_0, models.thetas[:1])
    assert nbytes(first) == nbytes(one)
