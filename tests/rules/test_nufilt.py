"""NUFILT against its loss as it is written, on whole matrices."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bench.method.recorded import RecordedTask, merge_recorded
from bench.method.weights import Weights
from tests.helpers.toy import Models, chain, close, property_test, rule, seeds


def naive(M_o: Tensor, M_n: Tensor, A: Tensor, old: int, new: int, steps: int, lr: float) -> Tensor:
    V_o, V_n = (torch.linalg.svd(M, full_matrices=False)[2][:k].T for M, k in ((M_o, old), (M_n, new)))
    P = torch.eye(M_o.shape[1], dtype=torch.float64) - V_o @ V_o.T
    A, B = A.clone().requires_grad_(), torch.zeros(A.shape[1], A.shape[0], dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([A, B], lr=lr)
    for _ in range(steps):
        F = M_o + M_n @ (P + B @ A)
        optimiser.zero_grad()
        (((F - M_n) @ V_n).square().sum() + ((F - M_o) @ V_o).square().sum()).backward()
        optimiser.step()
    return (M_o + M_n @ (P + B @ A)).detach()


@property_test
@given(seeds, st.integers(1, 3), st.integers(1, 3), st.booleans())
def test_it_is_adam_on_the_loss(seed: int, old: int, new: int, low_rank: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    rank = 3 if low_rank else 12
    theta_0, M_o, M_n = (
        (torch.randn(14, k, generator=generator) @ torch.randn(k, 12, generator=generator)).double()
        for k in (12, rank, rank)
    )
    base, before, trained = (Weights.of({"w": w}) for w in (theta_0, theta_0 + M_o, theta_0 + M_n))
    options = {"old": old, "new": new, "rank": 2, "steps": 25, "lr": 1e-2}
    nufilt: Any = rule("nufilt", **options)
    nufilt.begin(base)
    task = RecordedTask(2, base, base, before, trained)
    got = (nufilt.merge(task) - base).tensors()["w"]
    draw = torch.Generator().manual_seed(int(task.rng("nufilt w").integers(2**62)))
    A = 0.02 * torch.randn(2, 12, generator=draw, dtype=torch.float64)
    torch.testing.assert_close(got, naive(M_o, M_n, A, old, new, 25, 1e-2), rtol=1e-6, atol=1e-7)


@property_test
@given(seeds)
def test_without_steps_the_old_inputs_are_answered_as_before(seed: int) -> None:
    models = Models.draw(seed)
    served = chain(rule("nufilt", steps=0, old=2), models, "pretrained")
    for name in ("a", "b"):
        old, new = ((w - models.theta_0).tensors()[name] for w in served[:2])
        V_o = torch.linalg.svd(old, full_matrices=False)[2][:2].T
        torch.testing.assert_close(new @ V_o, old @ V_o)
        assert not torch.allclose(new, old)


def test_the_first_task_is_served_but_for_tensors_that_are_not_matrices() -> None:
    models = Models.draw(0)
    got = merge_recorded(rule("nufilt"), models.theta_0, models.thetas)
    for name in ("a", "b"):
        torch.testing.assert_close(got[0].tensors()[name], models.thetas[0].tensors()[name])
    assert all(torch.equal(w.tensors()["c"], models.theta_0.tensors()["c"]) for w in got)


def test_steps_bring_the_new_task_nearer_and_another_seed_draws_another_adapter() -> None:
    models = Models.draw(3, T=2)
    M_n = (models.thetas[1] - models.theta_0).tensors()["a"]
    V_n = torch.linalg.svd(M_n, full_matrices=False)[2][:2].T

    def missed(steps: int) -> float:
        served = merge_recorded(rule("nufilt", steps=steps, old=2, new=2, lr=1e-2), models.theta_0, models.thetas)[-1]
        return float((((served - models.theta_0).tensors()["a"] - M_n) @ V_n).norm())

    assert missed(200) < 0.9 * missed(0)
    nufilt: Any = rule("nufilt")
    tasks = [
        RecordedTask(2, models.theta_0, models.theta_0, models.thetas[0], models.thetas[1], seed=s) for s in (0, 1)
    ]
    assert not close(*(nufilt.merge(task) for task in tasks), 1e-9)
