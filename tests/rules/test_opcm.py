"""OPCM against reference numbers, and against full decompositions by two LAPACK routines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.method.recorded import RecordedTask, merge_recorded
from bench.method.weights import Weights
from tests.helpers.toy import Golden, Models, chain, close, noise, property_test, rule, seeds

both_forms = pytest.mark.parametrize("fusionbench", [False, True])


@both_forms
@pytest.mark.parametrize("name", ["opcm_alpha0.3", "opcm_alpha0.5"])
def test_golden_opcm(golden: Callable[[str], Golden], name: str, fusionbench: bool) -> None:
    g, told = golden(name), list[dict[str, float]]()
    theta_0 = g.part("theta0")
    opcm = rule("opcm", alpha=g.meta["hparams"]["alpha"], fusionbench=fusionbench)
    steps = merge_recorded(opcm, theta_0, [theta_0 + tau for tau in g.parts("tau")], scalars=told)
    for t, served in enumerate(steps):
        g.check(served, g.part(f"out/step/{t}/theta"))
    g.check(steps[-1], g.part("out/theta"))
    g.check([row["length"] for row in told], g.array("out/mean_norm"))
    g.check([row["length_before"] / row["length"] for row in told], g.array("out/lambda"))


@both_forms
def test_golden_opcm_single_step(golden: Callable[[str], Golden], fusionbench: bool) -> None:
    g = golden("opcm_single_step")
    theta_0, before = g.part("theta0"), g.part("hat_prev")
    opcm: Any = rule("opcm", alpha=g.meta["hparams"]["alpha"], fusionbench=fusionbench)
    opcm.begin(theta_0)
    opcm.A = (before - theta_0) * g.meta["hparams"]["lambda_prev"]
    opcm.merge(RecordedTask(2, theta_0, theta_0, before, theta_0 + g.part("tau/0")))
    g.check(theta_0 + opcm.A, g.part("out/theta"))


def removed(M: np.ndarray, tau: np.ndarray, alpha: float, driver: str, zero: str) -> np.ndarray:
    """What is taken off tau, by the definition: full U and V, entries of P set to zero."""
    U, s, Vt = scipy.linalg.svd(M, full_matrices=True, lapack_driver=driver)
    rank = int((s > 1e-10 * s[0]).sum())
    share = np.cumsum(s[:rank]) / s[:rank].sum()
    r = int(np.argmax(share > alpha)) if (share > alpha).any() else rank
    P = U.T @ tau @ Vt.T
    taken = np.zeros_like(P)
    taken[:r, :r] = P[:r, :r]
    for i in range(rank if zero == "rank" else min(M.shape)):
        taken[i, i] = P[i, i]
    return U @ taken @ Vt


@property_test
@given(seeds, st.integers(1, 4), st.sampled_from([0.0, 0.2, 0.5, 0.9]), st.booleans())
def test_the_projection_is_the_definition_with_either_lapack_routine(
    seed: int, rank: int, alpha: float, tall: bool
) -> None:
    rng = np.random.default_rng(seed)
    shape = (20, 12) if tall else (12, 20)
    M = rng.normal(size=(shape[0], rank)) @ rng.normal(size=(rank, shape[1]))
    tau = rng.normal(size=shape)
    opcm: Any = rule("opcm", alpha=alpha)
    opcm.A = Weights.of({"w": torch.from_numpy(M)})
    C = opcm.project(Weights.of({"w": torch.from_numpy(tau)})).tensors()["w"].numpy()
    for driver in ("gesdd", "gesvd"):
        np.testing.assert_allclose(C, tau - removed(M, tau, alpha, driver, "rank"), atol=1e-9)
    assert abs(float((C * M).sum())) < 1e-9 * np.linalg.norm(C) * np.linalg.norm(M)


def test_zeroing_the_diagonal_in_the_null_space_would_be_chance(record_property: Callable[[str, object], None]) -> None:
    rng = np.random.default_rng(0)
    M, tau = rng.normal(size=(30, 2)) @ rng.normal(size=(2, 20)), rng.normal(size=(30, 20))
    one, other = removed(M, tau, 0.5, "gesdd", "all"), removed(M.T, tau.T, 0.5, "gesdd", "all").T
    apart = float(np.linalg.norm(one - other) / np.linalg.norm(tau))
    record_property("two_decompositions_apart", apart)
    assert apart > 0.1


def low_rank(seed: int, rank: int, dtype: torch.dtype) -> Weights:
    g = torch.Generator().manual_seed(seed)
    left, right = torch.randn(40, rank, generator=g), torch.randn(rank, 30, generator=g)
    return Weights.of({"w": (left @ right).to(dtype)})


def test_lora_in_float32_is_what_it_is_in_float64() -> None:
    """The rank is found in spite of rounding: also in float32 no direction of the null space is touched."""
    out = []
    for dtype in (torch.float32, torch.float64):
        taus = [low_rank(i, 2, dtype) for i in range(5)]
        out.append(merge_recorded(rule("opcm"), taus[0].zeros(), taus)[-1].map(lambda v: v.double()))
    assert close(*out, 1e-5)


@property_test
@given(seeds)
def test_the_length_is_the_mean_of_the_task_vectors_lengths(seed: int) -> None:
    models = Models.draw(seed)
    served = chain(rule("opcm"), models, "pretrained")
    norms = [(theta - models.theta_0).norm() for theta in models.thetas]
    assert close(served[0], models.thetas[0], 1e-13)
    for t in range(1, 5):
        assert (served[t - 1] - models.theta_0).norm() == pytest.approx(sum(norms[:t]) / t, rel=1e-10)


@property_test
@given(seeds)
def test_what_is_added_is_orthogonal_to_what_is_there_in_every_matrix(seed: int) -> None:
    models = Models.draw(seed)
    opcm: Any = rule("opcm")
    opcm.begin(models.theta_0)
    for t in range(1, 5):
        before = opcm.A
        opcm.merge(models.task(t, models.theta_0))
        C = opcm.A - before
        inner = C.dots(before) / (C.norms() * before.norms()).clamp_min(1e-300)
        assert inner[:2].abs().max() < 1e-10
        tau = models.thetas[t - 1] - models.theta_0
        torch.testing.assert_close(C.tensors()["c"], tau.tensors()["c"])  # not a matrix: all of it is added


@pytest.mark.parametrize(("fusionbench", "block_goes"), [(False, True), (True, False)])
def test_alpha_one(fusionbench: bool, block_goes: bool) -> None:
    """Ours takes the whole block; the reference's search finds no index and takes none but the diagonal."""
    M, tau = noise(0), noise(1)
    opcm: Any = rule("opcm", alpha=1.0, fusionbench=fusionbench)
    opcm.A = M
    got = opcm.project(tau).tensors()["b"]
    U, _, Vt = torch.linalg.svd(M.tensors()["b"], full_matrices=False)
    P = U.T @ got @ Vt.T
    assert (float(P.norm()) < 1e-12) == block_goes
    assert float(P.diagonal().norm()) < 1e-12


def test_a_layer_into_which_nothing_was_merged_takes_the_task_vector() -> None:
    theta_0 = noise(0)
    first = theta_0.with_tensors({n: v + 1 for n, v in theta_0.items() if n != "b"})
    second = theta_0.with_tensors({n: v + noise(1).tensors()[n] for n, v in theta_0.items()})
    opcm: Any = rule("opcm")
    merge_recorded(opcm, theta_0, [first, second])
    torch.testing.assert_close(opcm.A.tensors()["b"], (second - theta_0).tensors()["b"])
