"""PCB-Merging against its steps written out on whole matrices, in the order of the authors' code."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bench.method.recorded import merge_recorded
from bench.method.weights import Weights
from tests.helpers.toy import Models, chain, close, noise, property_test, rule, seeds


def by_hand(taus: np.ndarray, ratio: float) -> np.ndarray:
    """The merged task vector (d,) of taus (n, d)."""
    n, d = taus.shape

    def clamped(x: np.ndarray, low: float, high: float) -> np.ndarray:
        ranked = np.sort(x, axis=1)
        return np.clip(x, ranked[:, [int(d * low)]], ranked[:, [int(d * (1 - high) - 1)]])

    def normalised(x: np.ndarray) -> np.ndarray:
        low, high = x.min(1, keepdims=True), x.max(1, keepdims=True)
        return (x - low) / (high - low)

    magnitude = clamped(np.abs(taus), 1e-4, 1e-4)
    intra = np.exp(n * normalised(magnitude) ** 2)
    inter = np.tanh(taus * taus.sum(0))
    scale = normalised(clamped(intra * inter, 1 - ratio, 0))
    return (np.sign(taus) * magnitude * scale).sum(0) / np.maximum(scale.sum(0), 1e-12)


@property_test
@given(seeds, st.sampled_from([0.05, 0.1, 0.33, 0.5, 0.9]))
def test_it_is_its_definition_after_every_task(seed: int, ratio: float) -> None:
    models = Models.draw(seed)
    taus = np.stack([(theta - models.theta_0).vector.numpy() for theta in models.thetas])
    for t, got in enumerate(chain(rule("pcb", ratio=ratio, lam=0.8), models, "pretrained"), 1):
        merged = by_hand(taus[:t], ratio)
        assert close(got, models.theta_0.map(lambda v, m=merged: v + 0.8 * v.new_tensor(m)), 1e-10)  # type: ignore[misc]


def test_of_many_entries_the_outliers_are_clamped() -> None:
    def wide(seed: int) -> Weights:
        many = noise(seed).map(lambda v: v.repeat(500))
        return Weights.of({"w": many.vector})

    theta_0 = wide(0)
    taus = [wide(1), wide(2)]
    taus[0].vector[7] = 1e3
    merged = by_hand(np.stack([tau.vector.numpy() for tau in taus]), 0.1)
    assert np.abs(merged).max() < 10
    served = merge_recorded(rule("pcb", lam=1.0), theta_0, [theta_0 + tau for tau in taus])[-1]
    np.testing.assert_allclose((served - theta_0).vector.numpy(), merged, atol=1e-9)


@property_test
@given(seeds, st.permutations(range(4)))
def test_the_order_does_not_matter(seed: int, order: list[int]) -> None:
    models = Models.draw(seed)
    shuffled = replace(models, thetas=[models.thetas[i] for i in order])
    one, other = (chain(rule("pcb"), m, "pretrained")[-1] for m in (models, shuffled))
    assert close(one, other, 1e-9)


def test_task_vectors_without_a_spread_change_nothing() -> None:
    models = Models.draw(0)
    flat = replace(models, thetas=[models.theta_0 + 0.1] * 3)
    assert all(close(served, models.theta_0) for served in chain(rule("pcb"), flat, "pretrained"))
