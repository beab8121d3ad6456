"""TSV-Merge against the equation with whole decompositions, and what LoRA and equal tasks make of it."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.method.recorded import merge_recorded
from bench.method.weights import Weights
from tests.helpers.toy import Models, chain, close, property_test, rule, seeds


def naive(taus: list[np.ndarray]) -> np.ndarray:
    """The equation: scaled leading components, polar factors by a whole decomposition."""
    k = max(1, min(taus[0].shape) // len(taus))
    parts = [np.linalg.svd(tau, full_matrices=False) for tau in taus]
    U, V = np.hstack([u[:, :k] for u, _, _ in parts]), np.hstack([vt[:k].T for _, _, vt in parts])
    polar = []
    for factor in (U, V):
        p, _, qt = np.linalg.svd(factor, full_matrices=False)
        polar.append(p @ qt)
    return polar[0] @ np.diag(np.concatenate([s[:k] for _, s, _ in parts])) @ polar[1].T


@property_test
@given(seeds, st.integers(1, 4), st.booleans())
def test_it_is_the_equation_on_full_rank_matrices_and_the_mean_elsewhere(seed: int, T: int, tall: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    shape = (11, 8) if tall else (8, 11)
    thetas = [Weights.of({"w": torch.randn(shape, generator=generator, dtype=torch.float64),
                          "b": torch.randn(3, generator=generator, dtype=torch.float64)}) for _ in range(T + 1)]  # fmt: skip
    theta_0, trained = thetas[0], thetas[1:]
    got = (merge_recorded(rule("tsv_merge", alpha=0.7), theta_0, trained)[-1] - theta_0).tensors()
    expected = naive([(theta - theta_0).tensors()["w"].numpy() for theta in trained])
    np.testing.assert_allclose(got["w"].numpy(), 0.7 * expected, atol=1e-9)
    mean = sum(((theta - theta_0).tensors()["b"] for theta in trained), torch.zeros(3).double()) / T
    torch.testing.assert_close(got["b"], 0.7 * mean)


def lora(seed: int, size: int = 96, rank: int = 2, scale: float = 1e-2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    left, right = (torch.randn(size, rank, generator=generator, dtype=torch.float64) for _ in range(2))
    return left @ right.T * scale


def test_of_lora_all_directions_stay_while_there_is_room_and_the_null_space_plays_no_part() -> None:
    taus = [lora(i) for i in range(3)]
    theta_0 = torch.randn(96, 96, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    U, S, V = [], [], []
    for tau in taus:
        u, s, vt = np.linalg.svd(tau.numpy())
        U, S, V = [*U, u[:, :2]], [*S, s[:2]], [*V, vt[:2].T]
    polar = []
    for factor in (np.hstack(U), np.hstack(V)):
        p, _, qt = np.linalg.svd(factor, full_matrices=False)
        polar.append(p @ qt)
    expected = polar[0] @ np.diag(np.concatenate(S)) @ polar[1].T
    for dtype, atol in ((torch.float64, 1e-10), (torch.float32, 1e-5)):  # float32: the sum rounds, the rank is found
        base = Weights.of({"w": theta_0.to(dtype)})
        trained = [Weights.of({"w": (theta_0 + tau).to(dtype)}) for tau in taus]
        got = merge_recorded(rule("tsv_merge"), base, trained)[-1] - base
        np.testing.assert_allclose(got.tensors()["w"].numpy(), expected, atol=atol)


@property_test
@given(seeds, st.permutations(range(4)))
def test_the_order_does_not_matter_and_one_task_is_served(seed: int, order: list[int]) -> None:
    models = Models.draw(seed)
    one, other = (merge_recorded(rule("tsv_merge"), models.theta_0, thetas)
                  for thetas in (models.thetas, [models.thetas[i] for i in order]))  # fmt: skip
    assert close(one[-1], other[-1], 1e-9)
    assert close(one[0], models.thetas[0], 1e-10)


def test_equal_tasks_keep_their_leading_components_at_their_length() -> None:
    models = Models.draw(0)
    theta = models.thetas[0]
    got = chain(rule("tsv_merge"), Models(models.theta_0, [theta] * 2, models.fishers), "pretrained")[-1]
    tau = (theta - models.theta_0).tensors()["a"]  # (6, 5): each task keeps 2 of 5
    U, s, Vt = torch.linalg.svd(tau, full_matrices=False)
    torch.testing.assert_close((got - models.theta_0).tensors()["a"], (U[:, :2] * s[:2]) @ Vt[:2])
