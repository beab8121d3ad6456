"""DOP against Adam on its two losses as they are written, with the weight found step by step."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from torch import Tensor

from bench.method.recorded import merge_recorded
from bench.method.weights import Weights
from tests.helpers.toy import REGISTRY, Models, chain, close, property_test, rule, seeds

mgda = REGISTRY.rules["dop"].merge.__globals__["mgda"]


def loss(W: Tensor, model: Tensor, theta_0: Tensor) -> Tensor:
    U, s, Vt = torch.linalg.svd(model - theta_0, full_matrices=False)
    S = torch.diag(s)
    return (S @ U.T @ (W - model)).square().sum() + ((W - model) @ Vt.T @ S).square().sum()


def naive(old: Tensor, new: Tensor, theta_0: Tensor, steps: int, lr: float, alpha: float, beta: float) -> Tensor:
    W = ((old + new) / 2).clone().requires_grad_()
    optimiser = torch.optim.Adam([W], lr=lr)
    for _ in range(steps):
        losses = [loss(W, model, theta_0) for model in (old, new)]
        g = [torch.autograd.grad(one, W, retain_graph=True)[0] / one.detach() for one in losses]
        oo, on, nn = (float((x * y).sum()) for x, y in ((g[0], g[0]), (g[0], g[1]), (g[1], g[1])))
        c = 0.999 if on >= oo else 0.001 if on >= nn else (nn - on) / (oo + nn - 2 * on)
        alpha = beta * alpha + (1 - beta) * c
        optimiser.zero_grad()
        (alpha * losses[0] + (1 - alpha) * losses[1]).backward()
        optimiser.step()
    return W.detach()


@property_test
@given(seeds, st.sampled_from([1.0, 0.9, 0.0]), st.booleans())
def test_two_merges_are_the_losses_minimised_one_after_the_other(seed: int, beta: float, low_rank: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    rank = 2 if low_rank else 12

    def draw() -> Tensor:
        return (torch.randn(16, rank, generator=generator) @ torch.randn(rank, 12, generator=generator)).double()

    theta_0 = torch.randn(16, 12, generator=generator, dtype=torch.float64)
    thetas = [theta_0 + draw() for _ in range(3)]
    base, trained = Weights.of({"w": theta_0, "b": theta_0[0]}), [Weights.of({"w": w, "b": w[0]}) for w in thetas]
    served = merge_recorded(rule("dop", steps=15, lr=1e-2, beta=beta, share=1.0), base, trained)
    assert torch.equal(served[0].vector, trained[0].vector)
    W = thetas[0]
    for t in (1, 2):
        W = naive(W, thetas[t], theta_0, 15, 1e-2, 0.8, beta)
        torch.testing.assert_close(served[t].tensors()["w"], W, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(served[2].tensors()["b"], (thetas[0][0] / 2 + thetas[1][0] / 2 + thetas[2][0]) / 2)


@property_test
@given(seeds, st.floats(0.1, 3), st.booleans())
def test_the_weight_makes_the_joint_gradient_shortest(seed: int, scale: float, aligned: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    g_o, other = (torch.randn(4, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    g_n = scale * g_o + 0.1 * other if aligned else scale * other
    best = minimize_scalar(lambda c: float((c * g_o + (1 - c) * g_n).norm()), bounds=(0, 1), method="bounded")
    assert float(mgda(g_o, g_n)) == pytest.approx(best.x, abs=2e-3)
    assert float(mgda(g_o, g_o)) == 0.999  # as the reference decides where every weight is as good


def test_the_share_cuts_the_tail_and_keeps_at_least_one_direction() -> None:
    Distance = REGISTRY.rules["dop"].merge.__globals__["Distance"]
    tau = torch.diag(torch.tensor([6.0, 3.0, 1.0, 0.0, 0.0, 0.0, 0.0], dtype=torch.float64))
    for share, kept in ((0.5, 1), (0.6, 1), (0.61, 2), (0.9, 2), (1.0, 3)):
        assert Distance(tau, share, 0.0).left.shape == (7, kept)
    assert Distance(tau * 0, 0.9, 0.0).left.shape == (7, 0)


def test_equal_models_stay() -> None:
    models = Models.draw(0)
    same = chain(rule("dop", steps=5), Models(models.theta_0, [models.thetas[0]] * 3, models.fishers), "pretrained")
    assert all(close(served, models.thetas[0]) for served in same)
