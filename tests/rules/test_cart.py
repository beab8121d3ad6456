"""CART against its equation, and against AdaRank before it tunes anything."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.method.recorded import merge_recorded
from bench.method.weights import Weights
from tests.helpers.toy import Models, chain, close, property_test, rule, seeds


@property_test
@given(seeds, st.integers(1, 4), st.sampled_from([0.04, 0.3, 1.0]))
def test_it_is_the_equation(seed: int, T: int, ratio: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    thetas = [torch.randn(12, 9, generator=generator, dtype=torch.float64) for _ in range(T + 1)]
    theta_0, *trained = (Weights.of({"w": theta, "b": theta[0]}) for theta in thetas)
    got = merge_recorded(rule("cart", lam=1.7, ratio=ratio), theta_0, trained)[-1].tensors()
    mean = np.mean([theta.numpy() for theta in thetas[1:]], axis=0)
    expected, k = mean.copy(), max(1, int(ratio * 9))
    for theta in thetas[1:]:
        U, s, Vt = np.linalg.svd(theta.numpy() - mean)
        expected += 1.7 * U[:, :k] @ np.diag(s[:k]) @ Vt[:k]
    np.testing.assert_allclose(got["w"].numpy(), expected, atol=1e-9)
    np.testing.assert_allclose(got["b"].numpy(), mean[0], atol=1e-12)


@property_test
@given(seeds)
def test_it_is_adarank_before_the_first_step(seed: int) -> None:
    models = Models.draw(seed)
    cart = chain(rule("cart", lam=2.3, ratio=0.16), models, "pretrained")
    untuned = chain(rule("adarank", mode="cart", steps=0), models, "pretrained")
    # AdaRank multiplies the centred other tensors too, whose sum is 0 but for rounding.
    assert all(close(a, b, 1e-6) for a, b in zip(cart, untuned, strict=True))


@property_test
@given(seeds, st.permutations(range(4)))
def test_the_order_does_not_matter_equal_models_stay_and_everything_kept_is_a_scaled_sum(
    seed: int, order: list[int]
) -> None:
    models = Models.draw(seed)
    one, other = (merge_recorded(rule("cart"), models.theta_0, thetas)[-1]
                  for thetas in (models.thetas, [models.thetas[i] for i in order]))  # fmt: skip
    assert close(one, other, 1e-8)
    same = chain(rule("cart"), Models(models.theta_0, [models.thetas[0]] * 3, models.fishers), "pretrained")
    assert all(close(served, models.thetas[0], 1e-9) for served in same)
    whole = chain(rule("cart", ratio=1.0), models, "pretrained")[-1]
    assert close(whole, sum(models.thetas[1:], models.thetas[0]) / 4, 1e-9)  # centred vectors sum to 0
