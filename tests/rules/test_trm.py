"""TRM: the subspace, the objective and its gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from bench.method.tools.minimise import minimise
from bench.method.weights import Weights
from tests.helpers.toy import REGISTRY, SHAPES, Models, Toy, close, noise, property_test, rule, seeds

Record = Callable[[str, object], None]


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
