"""KnOTS against its equation with whole decompositions and a naive TIES."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.method.recorded import merge_recorded
from bench.method.weights import Weights
from tests.helpers.toy import Models, chain, close, property_test, rule, seeds


def naive_ties(vectors: list[np.ndarray], keep: int) -> np.ndarray:
    trimmed = []
    for vector in vectors:
        cut = np.sort(np.abs(vector))[-keep]
        trimmed.append(np.where(np.abs(vector) >= cut, vector, 0))
    merged = np.zeros_like(vectors[0])
    for j, column in enumerate(np.stack(trimmed, 1)):
        agrees = column[(column != 0) & (np.sign(column) == np.sign(column.sum()))]
        merged[j] = agrees.mean() if len(agrees) else 0
    return merged


def naive(taus: list[list[np.ndarray]], density: float) -> list[np.ndarray]:
    """Merged matrices of task vectors given as matrices by task; TIES over all of them together."""
    bases, parts = [], []
    for same in zip(*taus, strict=True):
        U, s, Vt = np.linalg.svd(np.hstack(same), full_matrices=False)
        r = int((s > 1e-6 * s[0]).sum())
        bases.append(U[:, :r])
        parts.append(np.split(np.diag(s[:r]) @ Vt[:r], len(taus), axis=1))
    vectors = [np.concatenate([part[i].ravel() for part in parts]) for i in range(len(taus))]
    merged, out = naive_ties(vectors, max(1, round(density * len(vectors[0])))), []
    for U, part in zip(bases, parts, strict=True):
        out.append(U @ merged[: part[0].size].reshape(part[0].shape))
        merged = merged[part[0].size :]
    return out


@property_test
@given(seeds, st.integers(1, 4), st.sampled_from([0.1, 0.5, 1.0]), st.booleans())
def test_it_is_the_equation_over_all_matrices_together(seed: int, T: int, density: float, low_rank: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    shapes, rank = ((10, 7), (6, 9)), 1 if low_rank else 9

    def draw(shape: tuple[int, int]) -> torch.Tensor:
        left, right = (torch.randn(side, rank, generator=generator, dtype=torch.float64) for side in shape)
        return left @ right.T

    taus = [[draw(shape) for shape in shapes] for _ in range(T)]
    base = Weights.of({"v": draw(shapes[0]), "w": draw(shapes[1]), "b": torch.ones(7).double()})
    trained = [base + Weights.of({"v": v, "w": w, "b": v[0]}) for v, w in taus]
    got = (merge_recorded(rule("knots", density=density, lam=0.5), base, trained)[-1] - base).tensors()
    expected = naive([[x.numpy() for x in tau] for tau in taus], density)
    for name, matrix in zip("vw", expected, strict=True):
        np.testing.assert_allclose(got[name].numpy(), 0.5 * matrix, atol=1e-9)
    torch.testing.assert_close(got["b"], 0.5 * torch.stack([v[0] for v, _ in taus]).mean(0))


def test_one_task_untrimmed_is_the_task_vector_and_opposite_ones_leave_one_of_them() -> None:
    models = Models.draw(0)
    whole = chain(rule("knots", density=1.0, lam=1.0), models, "pretrained")[0]
    assert close(whole, models.thetas[0], 1e-10)
    tau = models.thetas[0] - models.theta_0
    pair = [models.theta_0 + tau, models.theta_0 - tau * 0.5]
    got = merge_recorded(rule("knots", density=1.0, lam=1.0), models.theta_0, pair)[-1] - models.theta_0
    for name in ("a", "b"):  # the larger one wins every sign
        torch.testing.assert_close(got.tensors()[name], tau.tensors()[name])


@property_test
@given(seeds, st.permutations(range(4)))
def test_the_order_does_not_matter(seed: int, order: list[int]) -> None:
    models = Models.draw(seed)
    one, other = (merge_recorded(rule("knots"), models.theta_0, thetas)[-1]
                  for thetas in (models.thetas, [models.thetas[i] for i in order]))  # fmt: skip
    assert close(one, other, 1e-9)


@pytest.mark.parametrize("key", ["knots", "core_space", "tsv_merge", "iso_c", "iso_cts", "cart", "wudi"])
def test_a_model_without_matrices_gets_the_mean(key: str) -> None:
    base = Weights.of({"b": torch.zeros(3).double()})
    trained = [Weights.of({"b": torch.tensor([1.0, 2, 3]).double() * i}) for i in (1, 3)]
    got = merge_recorded(rule(key), base, trained)[-1].tensors()["b"]
    torch.testing.assert_close(got, (0.6 if key == "knots" else 1) * trained[0].tensors()["b"] * 2)
