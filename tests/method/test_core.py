"""The decomposition to a numerical rank, and the basis that the task vectors of one matrix share."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.method.tools.core import isotropic, polar, rounding, shared_basis, thin_svd
from tests.helpers.toy import property_test, seeds


def low_rank(seed: int, rank: int, shape: tuple[int, int], spread: float = 1.0) -> torch.Tensor:
    """Singular values fall from 1 to about ``spread``."""
    generator = torch.Generator().manual_seed(seed)
    left, right = (torch.linalg.qr(torch.randn(side, rank, generator=generator, dtype=torch.float64)).Q
                   for side in shape)  # fmt: skip
    return left * torch.logspace(0, torch.tensor(spread).log10().item(), rank, dtype=torch.float64) @ right.T


@pytest.mark.parametrize(("rank", "spread"), [(3, 1.0), (40, 1e-5), (63, 1e-2), (64, 1e-2), (200, 1e-3), (290, 0.1)])
@pytest.mark.parametrize("shape", [(300, 520), (520, 300)])
def test_the_projected_decomposition_is_the_whole_one(rank: int, spread: float, shape: tuple[int, int]) -> None:
    x = low_rank(rank, rank, shape, spread)
    U, s, Vt = thin_svd(x)
    assert len(s) == rank
    torch.testing.assert_close(s, torch.linalg.svdvals(x)[:rank], rtol=1e-8, atol=1e-13)
    torch.testing.assert_close((U * s) @ Vt, x, atol=1e-9, rtol=0)
    eye = torch.eye(rank, dtype=torch.float64)
    torch.testing.assert_close(U.T @ U, eye, atol=1e-9, rtol=0)
    torch.testing.assert_close(Vt @ Vt.T, eye, atol=1e-9, rtol=0)


@pytest.mark.parametrize("scale", [1e-2, 1e-4])
def test_the_rank_of_a_task_vector_is_found_beneath_the_rounding_of_float32(scale: float) -> None:
    """At 1e-4 rounding errors are over 1e-6 of the largest singular value: the size of the weights tells."""
    theta_0 = torch.randn(320, 200, generator=torch.Generator().manual_seed(1)) * 0.05
    tau = scale * low_rank(2, 5, (320, 200), 0.2).float()
    trained = theta_0 + tau
    assert len(thin_svd(trained - theta_0, rounding(theta_0))[1]) == 5
    noise = torch.linalg.matrix_norm((trained - theta_0 - tau).double(), 2)
    assert 0.05 * rounding(theta_0) < float(noise) < 0.5 * rounding(theta_0)


def test_nothing_has_rank_zero_and_stays_nothing() -> None:
    zero = torch.zeros(5, 3)
    assert [tuple(part.shape) for part in thin_svd(zero)] == [(5, 0), (0,), (0, 3)]
    for function in (polar, isotropic):
        torch.testing.assert_close(function(zero), zero.double())
    L, M, R = shared_basis([zero, zero])
    assert M.shape == (2, 0, 0)
    torch.testing.assert_close(L @ M[0] @ R, zero.double())


@property_test
@given(seeds, st.integers(1, 4), st.integers(1, 3))
def test_task_vectors_in_their_shared_basis_are_the_task_vectors(seed: int, T: int, rank: int) -> None:
    taus = [low_rank(seed + i, rank, (20, 30), 0.1) for i in range(T)]
    L, M, R = shared_basis([*taus, taus[0]])  # one of them twice adds nothing
    assert (T + 1) * rank < 20
    assert M.shape == (T + 1, T * rank, T * rank)
    for tau, core in zip([*taus, taus[0]], M, strict=True):
        torch.testing.assert_close(L @ core @ R, tau, atol=1e-10, rtol=0)
    for basis in (L.T @ L, R @ R.T):
        torch.testing.assert_close(basis, torch.eye(T * rank, dtype=torch.float64), atol=1e-9, rtol=0)


def test_where_the_task_vectors_may_span_a_side_its_basis_is_the_spaces_own() -> None:
    taus = [low_rank(i, 4, (7, 30)) for i in range(2)]
    L, M, R = shared_basis(taus)
    assert torch.equal(L, torch.eye(7, dtype=torch.float64))
    assert R.shape == (8, 30)
    for tau, core in zip(taus, M, strict=True):
        torch.testing.assert_close(core @ R, tau, atol=1e-10, rtol=0)


@property_test
@given(seeds)
def test_polar_and_isotropic_flatten_the_spectrum(seed: int) -> None:
    x = torch.randn(7, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    U, s, Vt = torch.linalg.svd(x, full_matrices=False)
    torch.testing.assert_close(polar(x), U @ Vt)
    torch.testing.assert_close(isotropic(x), s.mean() * U @ Vt)
    flat = low_rank(seed, 3, (9, 8), 0.1)
    values = torch.linalg.svdvals(isotropic(flat))
    torch.testing.assert_close(values[:3], torch.linalg.svdvals(flat)[:3].mean().expand(3))
    assert float(values[3:].max()) < 1e-12
