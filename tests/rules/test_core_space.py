"""Core space against a merge of the factors themselves, and against the rules that it must agree with."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.method.recorded import merge_recorded
from bench.method.weights import Weights
from tests.helpers.toy import Models, chain, close, property_test, rule, seeds


def factors(seed: int, T: int, rank: int = 2, shape: tuple[int, int] = (20, 14)) -> list[tuple[np.ndarray, np.ndarray]]:
    """B_i, A_i of T tasks, balanced: B_i^T B_i = A_i A_i^T."""
    rng, out = np.random.default_rng(seed), []
    for _ in range(T):
        U, s, Vt = np.linalg.svd(rng.normal(size=(shape[0], rank)) @ rng.normal(size=(rank, shape[1])))
        out.append((U[:, :rank] * s[:rank] ** 0.5, s[:rank, None] ** 0.5 * Vt[:rank]))
    return out


def merged(pairs: list[tuple[np.ndarray, np.ndarray]], **options: object) -> np.ndarray:
    base = Weights.of({"w": torch.zeros(len(pairs[0][0]), pairs[0][1].shape[1], dtype=torch.float64)})
    trained = [Weights.of({"w": torch.from_numpy(B @ A)}) for B, A in pairs]
    return np.asarray(merge_recorded(rule("core_space", **options), base, trained)[-1].tensors()["w"])


def cores(pairs: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
    U = np.linalg.svd(np.hstack([B for B, _ in pairs]), full_matrices=False)[0]
    V = np.linalg.svd(np.vstack([A for _, A in pairs]), full_matrices=False)[2]
    return U, [U.T @ B @ A @ V.T for B, A in pairs], V


def flat(x: np.ndarray) -> np.ndarray:
    U, s, Vt = np.linalg.svd(x, full_matrices=False)
    return s.mean() * U @ Vt


def tsv(parts: list[np.ndarray]) -> np.ndarray:
    k = min(parts[0].shape) // len(parts)
    decomposed = [np.linalg.svd(part) for part in parts]
    sides = [np.hstack([u[:, :k] for u, _, _ in decomposed]), np.hstack([vt[:k].T for _, _, vt in decomposed])]
    polar = [p @ q for p, _, q in (np.linalg.svd(side, full_matrices=False) for side in sides)]
    return polar[0] @ np.diag(np.concatenate([s[:k] for _, s, _ in decomposed])) @ polar[1].T


def ties(parts: list[np.ndarray], density: float) -> np.ndarray:
    keep = max(1, round(density * parts[0].size))
    kept = np.stack([np.where(np.abs(part) >= np.sort(np.abs(part).ravel())[-keep], part, 0) for part in parts])
    agrees = np.where(np.sign(kept) == np.sign(kept.sum(0)), kept, 0)
    return agrees.sum(0) / np.maximum(1, (agrees != 0).sum(0))


@property_test
@given(seeds, st.integers(1, 4), st.booleans())
def test_it_merges_the_cores_of_the_factors(seed: int, T: int, isotropic: bool) -> None:
    pairs = factors(seed, T)
    U, M, V = cores(pairs)
    for combine, core in (("tsv", tsv(M)), ("ties", ties(M, 0.4)), ("sum", np.sum(M, axis=0))):
        got = merged(pairs, combine=combine, isotropic=isotropic, density=0.4, lam=0.7)
        if combine == "ties" and isotropic and np.linalg.matrix_rank(core) < 2 * T:
            continue  # its null space is arbitrary in numpy's decomposition
        np.testing.assert_allclose(got, 0.7 * U @ (flat(core) if isotropic else core) @ V, atol=1e-8)


@property_test
@given(seeds)
def test_nothing_is_lost_and_spectral_rules_come_out_as_outside_the_core(seed: int) -> None:
    pairs = factors(seed, 3)
    np.testing.assert_allclose(merged(pairs, combine="sum", isotropic=False), sum(B @ A for B, A in pairs), atol=1e-10)
    models = Models.draw(seed)
    iso = chain(rule("core_space", combine="sum"), models, "pretrained")
    for one, other in zip(iso, chain(rule("iso_c"), models, "pretrained"), strict=True):
        assert close(one, other, 1e-8)
    whole = chain(rule("core_space", isotropic=False), models, "pretrained")
    for one, other in zip(whole, chain(rule("tsv_merge"), models, "pretrained"), strict=True):
        assert close(one, other, 1e-8)  # of full rank the core is the matrix, rotated


@pytest.mark.parametrize("combine", ["tsv", "ties", "sum"])
def test_the_order_does_not_matter(combine: str) -> None:
    models = Models.draw(5)
    one, other = (merge_recorded(rule("core_space", combine=combine), models.theta_0, thetas)[-1]
                  for thetas in (models.thetas, models.thetas[::-1]))  # fmt: skip
    assert close(one, other, 1e-8)
