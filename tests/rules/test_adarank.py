"""AdaRank against its definition: gates, weights, the straight-through gradient, and where it begins."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bench.common.errors import UserError
from bench.method.carried import nbytes
from bench.method.weights import Weights
from tests.helpers.toy import REGISTRY, Models, chain, close, property_test, rule, seeds

AdaRank: Any = REGISTRY.rules["adarank"]
modes = pytest.mark.parametrize("mode", ["ta", "cart"])


def naive(models: Models, mode: str, t: int, w: float | None = None, ratio: float | None = None) -> Weights:
    """Where it begins after task t: matrix by matrix, task by task."""
    taus = [theta - models.theta_0 for theta in models.thetas[:t]]
    origin = models.theta_0
    if mode == "cart":
        mean = sum(taus[1:], taus[0]) / t
        origin, taus = origin + mean, [tau - mean for tau in taus]
    w, ratio = w or {"ta": 0.3, "cart": 2.3}[mode], ratio or {"ta": 1.0, "cart": 0.16}[mode]
    total = {name: view.clone() for name, view in origin.items()}
    for tau in taus:
        for name, view in tau.items():
            if view.dim() == 2:
                U, s, Vh = torch.linalg.svd(view, full_matrices=False)
                kept = max(1, int(ratio * int(torch.linalg.matrix_rank(view))))
                view = (U[:, :kept] * s[:kept]) @ Vh[:kept]
            total[name] += w * view
    return Weights.of(total)


class Spy:
    """Stands in for the optimiser: the gradient at the initial coefficients; moves them as it is told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, move: Callable[[Tensor], Tensor] = lambda c: c) -> None:
        self.move = move
        monkeypatch.setattr("bench.method.tools.minimise.minimise", self)

    def __call__(self, loss: Callable[[Tensor, int], Tensor], params: Tensor, steps: int, lr: float) -> Tensor:
        self.initial = params.detach().clone().requires_grad_()
        self.gradient = torch.autograd.grad(loss(self.initial, 0), self.initial)[0]
        return self.move(params.detach())


@modes
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@property_test
@given(seed=seeds)
def test_no_steps_are_the_pruned_sum_it_begins_with(mode: str, dtype: torch.dtype, seed: int) -> None:
    models = Models.draw(seed, dtype=dtype)
    for t, served in enumerate(chain(AdaRank(steps=0, mode=mode), models, "pretrained"), 1):
        assert close(served, naive(models, mode, t), 1e-5 if dtype == torch.float32 else 1e-11)


@modes
def test_another_configuration_begins_with_its_own_weight_and_share_of_gates(mode: str) -> None:
    models = Models.draw(4)
    for options in ({"w": 1.0, "ratio": 0.3}, {"w": 0.05}, {"ratio": 0.5}):
        for t, served in enumerate(chain(AdaRank(steps=0, mode=mode, **options), models, "pretrained"), 1):
            assert close(served, naive(models, mode, t, **options), 1e-11)


def test_naming_the_default_configuration_changes_no_bit() -> None:
    models = Models.draw(5)
    for mode, options in (("ta", {"w": 0.3, "ratio": 1.0}), ("cart", {"w": 2.3, "ratio": 0.16})):
        default, named = (
            chain(AdaRank(steps=0, mode=mode, **each), models, "pretrained")[-1] for each in ({}, options)
        )
        assert default.digest() == named.digest()


def test_the_options_of_a_configuration_are_checked_and_the_default_stays_out_of_the_spelling() -> None:
    assert REGISTRY.resolve("adarank:w=0.05").rule_options["w"] == 0.05
    assert REGISTRY.resolve("adarank").variant == "plain+adarank@pretrained"
    for wrong in ("w=0", "ratio=1.5", "ratio=half"):
        with pytest.raises(UserError, match=wrong.partition("=")[0]):
            REGISTRY.resolve(f"adarank:{wrong}")


@property_test
@given(seeds, st.sampled_from(["pretrained", "previous", "merged"]))
def test_all_gates_on_and_the_same_weight_is_task_arithmetic(seed: int, start: str) -> None:
    models = Models.draw(seed)
    pairs = zip(chain(AdaRank(steps=0), models, start), chain(rule("task_arithmetic"), models, start), strict=True)
    assert all(close(one, other, 1e-11) for one, other in pairs)


def test_cart_with_all_gates_on_is_the_average_and_after_one_task_what_was_trained() -> None:
    models = Models.draw(1)
    served = chain(AdaRank(steps=0, mode="cart"), models, "pretrained")
    assert close(served[0], models.thetas[0], 1e-12)
    assert close(naive(models, "cart", 4, ratio=1.0), chain(rule("average"), models)[-1], 1e-12)
    assert not close(served[3], naive(models, "cart", 4, ratio=1.0), 1e-2)


@modes
def test_the_gradient_passes_straight_through_the_gates(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """dL/db = w s <dL/dW, u v^T> sigma'(b / 10) / 10, on or off; dL/dw counts the open gates alone."""
    models, spy = Models.draw(2, T=2), Spy(monkeypatch)
    adarank = AdaRank(steps=1, batch=5, keep=5, mode=mode)
    served = chain(adarank, models, "pretrained")[-1]
    task, W = models.task(2, served), served.map(lambda v: v.requires_grad_())
    [(x, _)] = task.batches(5, 1)
    total = torch.zeros((), dtype=torch.float64)
    for i, images in enumerate([adarank.buffer[0], x], 1):
        p = task.logits(W, images, i).softmax(-1)
        total = total - (p * p.log()).sum(-1).mean()
    g = Weights(torch.autograd.grad(total, W.vector)[0], W.layout).tensors()
    taus = [theta - models.theta_0 for theta in models.thetas]
    if mode == "cart":
        mean = (taus[0] + taus[1]) / 2
        taus = [tau - mean for tau in taus]
    w = {"ta": 0.3, "cart": 2.3}[mode]
    at, seen = 0, 0
    for name, shape in zip(W.layout.names, W.layout.shapes, strict=True):  # every shape is its own group
        own_w = spy.gradient[at : at + 2]
        at += 2
        for k in range(2):
            tau = taus[k].tensors()[name]
            if len(shape) == 1:
                torch.testing.assert_close(own_w[k], (g[name] * tau).sum(), rtol=1e-7, atol=1e-10)
                continue
            r = min(shape)
            b, own_b = (v[at + k * r : at + (k + 1) * r] for v in (spy.initial.detach(), spy.gradient))
            U, s, Vh = torch.linalg.svd(tau, full_matrices=False)
            along = torch.einsum("ir,ij,rj->r", U, g[name], Vh) * s
            slope = torch.sigmoid(b / 10) * (1 - torch.sigmoid(b / 10)) / 10
            torch.testing.assert_close(own_b, w * along * slope, rtol=1e-7, atol=1e-10)
            torch.testing.assert_close(own_w[k], (along * (b > 0)).sum(), rtol=1e-7, atol=1e-10)
            assert set(b.tolist()) == ({0.1} if mode == "ta" else {0.1, -0.1})
            assert bool(own_b.any())
            seen += 1
        at += 2 * min(shape) if len(shape) == 2 else 0
    assert at == len(spy.gradient)
    assert seen == 4


def test_a_closed_gate_removes_its_component_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    models = Models.draw(3, T=1)

    def close_the_second_of_a(c: Tensor) -> Tensor:
        return torch.cat([c[:2], -c[2:3] * 1e-3, c[3:]])  # after a's one w: its five gates

    whole = chain(AdaRank(steps=0), models)[0]
    Spy(monkeypatch, close_the_second_of_a)
    task = models.task(1, models.theta_0)
    adarank = AdaRank()
    adarank.begin(models.theta_0)
    pruned = adarank.merge(task)
    U, s, Vh = torch.linalg.svd((models.thetas[0] - models.theta_0).tensors()["a"], full_matrices=False)
    removed = (whole - pruned).tensors()
    torch.testing.assert_close(removed["a"], 0.3 * s[1] * torch.outer(U[:, 1], Vh[1]), rtol=0, atol=1e-12)
    assert not bool(removed["b"].any() | removed["c"].any())
    assert task.scalars["gates_on"] == pytest.approx(8 / 9)


def test_components_that_are_rounding_have_no_gates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under LoRA: 16 % of the matrix's size would be all of a low-rank task vector."""
    models, spy = Models.draw(4, T=3, dtype=torch.float32), Spy(monkeypatch)
    generator = torch.Generator().manual_seed(0)
    thetas = []
    for _ in range(3):
        a = torch.outer(*(torch.randn(n, generator=generator) for n in (6, 5)))
        thetas.append(models.theta_0.with_tensors({"a": models.theta_0.tensors()["a"] + a}))
    low = Models(models.theta_0, thetas, models.fishers)
    served = chain(AdaRank(steps=1), low, "pretrained")[-1]
    gates = len(spy.initial) - 3 * 3
    assert gates == 3 * 1 + 3 * 1  # a has rank 1, b has not moved: one gate, of nothing
    assert close(served, naive(low, "ta", 3), 1e-5)
    for name in ("b", "c"):
        assert torch.equal(served.tensors()[name], models.theta_0.tensors()[name])
    chain(AdaRank(steps=1, mode="cart"), low, "pretrained")
    assert len(spy.initial) - 3 * 3 == 3 * 3 + 3 * 1  # three of rank 1, less their mean, have rank 3


@modes
def test_gates_and_weights_move_and_what_is_carried_are_task_vectors_and_images(mode: str) -> None:
    models = Models.draw(5)
    adarank = AdaRank(steps=40, lr=0.02, keep=8, mode=mode)
    adarank.begin(models.theta_0)
    tasks = [models.task(t, models.theta_0) for t in (1, 2, 3, 4)]
    served = [adarank.merge(task) for task in tasks]
    assert nbytes(adarank) == 4 * models.theta_0.nbytes + 4 * 8 * 6 * 8
    begun = {"ta": 1.0, "cart": 2 / 9}[mode]  # of five and four components, one each
    assert 0 < tasks[-1].scalars["gates_on"] != pytest.approx(begun)
    assert not close(served[-1], naive(models, mode, 4), 1e-3)
    assert tasks[-1].scalars["merge_steps"] == 40


def test_modes_and_names() -> None:
    for name, options in (("adarank", {}), ("adarank_cart", {"mode": "cart"}), ("adarank_ref", {"steps": 10_000})):
        found = REGISTRY.resolve(name)
        assert found.start == "pretrained"
        assert {k: found.rule_options[k] for k in options} == options
        assert found.rule_options["steps"] == options.get("steps", 500)
