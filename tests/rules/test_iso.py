"""Iso-C and Iso-CTS against the equations with whole decompositions, and what LoRA makes of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.method.recorded import merge_recorded
from bench.method.weights import Weights
from tests.helpers.toy import Models, chain, close, property_test, rule, seeds

both = pytest.mark.parametrize("key", ["iso_c", "iso_cts"])


def thin(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    U, s, Vt = np.linalg.svd(x, full_matrices=False)
    return U, s, Vt.T


def naive_c(taus: list[np.ndarray]) -> np.ndarray:
    U, s, V = thin(np.sum(taus, axis=0))
    return s.mean() * U @ V.T


def naive_cts(taus: list[np.ndarray], share: float) -> np.ndarray:
    R, T = min(taus[0].shape), len(taus)
    each = round((R - int(R * share)) / T)
    k = R - each * T
    U, s, V = thin(np.sum(taus, axis=0))
    left, values, right = [U[:, :k]], [s[:k]], [V[:, :k]]
    for tau in taus:
        u, value, v = thin((np.eye(len(tau)) - U[:, :k] @ U[:, :k].T) @ tau)
        left, values, right = [*left, u[:, :each]], [*values, value[:each]], [*right, v[:, :each]]
    polar = []
    for side in (left, right):
        p, _, q = thin(np.hstack(side))
        polar.append(p @ q.T)
    return np.concatenate(values).mean() * polar[0] @ polar[1].T


def full_rank(seed: int, T: int, shape: tuple[int, int]) -> list[Weights]:
    generator = torch.Generator().manual_seed(seed)
    return [Weights.of({"w": torch.randn(shape, generator=generator, dtype=torch.float64),
                        "b": torch.randn(3, generator=generator, dtype=torch.float64)}) for _ in range(T + 1)]  # fmt: skip


@property_test
@given(seeds, st.integers(1, 4), st.sampled_from([0.0, 0.5, 0.8, 1.0]), st.booleans())
def test_they_are_the_equations_on_full_rank_matrices_and_the_mean_elsewhere(
    seed: int, T: int, share: float, tall: bool
) -> None:
    theta_0, *trained = full_rank(seed, T, (16, 12) if tall else (12, 16))
    taus = [(theta - theta_0).tensors()["w"].numpy() for theta in trained]
    mean = torch.stack([(theta - theta_0).tensors()["b"] for theta in trained]).mean(0)
    expected = {"iso_c": naive_c(taus), "iso_cts": naive_cts(taus, share)}
    for key, options in (("iso_c", {}), ("iso_cts", {"common": share})):
        got = (merge_recorded(rule(key, alpha=0.6, **options), theta_0, trained)[-1] - theta_0).tensors()
        np.testing.assert_allclose(got["w"].numpy(), 0.6 * expected[key], atol=1e-8)
        torch.testing.assert_close(got["b"], 0.6 * mean)


@property_test
@given(seeds)
def test_all_common_is_iso_c(seed: int) -> None:
    models = Models.draw(seed)
    one, other = chain(rule("iso_c"), models, "pretrained"), chain(rule("iso_cts", common=1.0), models, "pretrained")
    assert all(close(a, b, 1e-8) for a, b in zip(one, other, strict=True))


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_of_lora_only_the_directions_of_the_sum_are_written(key: str, dtype: torch.dtype) -> None:
    """Three task vectors of rank 2: six equal singular values, at the mean of six, and nothing beside them."""
    generator = torch.Generator().manual_seed(0)
    theta_0 = torch.randn(96, 80, generator=generator, dtype=torch.float64) * 0.05
    taus = [torch.randn(96, 2, generator=generator).double() @ torch.randn(2, 80, generator=generator).double() * 1e-3
            for _ in range(3)]  # fmt: skip
    base, trained = (Weights.of({"w": theta_0.to(dtype)}),
                     [Weights.of({"w": (theta_0 + tau).to(dtype)}) for tau in taus])  # fmt: skip
    got = (merge_recorded(rule(key), base, trained)[-1] - base).tensors()["w"].double()
    values, total = torch.linalg.svdvals(got), sum(taus, torch.zeros(96, 80).double())
    U, s, Vt = torch.linalg.svd(total, full_matrices=False)
    assert float(values[:6].min()) == pytest.approx(float(values[0]), rel=1e-3)
    assert float(values[6:].max()) < 1e-4 * float(values[0])
    torch.testing.assert_close(U[:, :6] @ (U[:, :6].T @ got), got, atol=1e-6, rtol=0)
    if key == "iso_c":
        torch.testing.assert_close(got, s[:6].mean() * U[:, :6] @ Vt[:6], atol=1e-6, rtol=0)


@both
@property_test
@given(seeds, st.permutations(range(4)))
def test_the_order_does_not_matter(key: str, seed: int, order: list[int]) -> None:
    models = Models.draw(seed)
    one, other = (merge_recorded(rule(key), models.theta_0, thetas)[-1]
                  for thetas in (models.thetas, [models.thetas[i] for i in order]))  # fmt: skip
    assert close(one, other, 1e-7)
