"""LoRE against reference numbers, and against the turns written out on the whole matrices."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.method.carried import nbytes
from bench.method.recorded import merge_recorded
from bench.method.weights import Weights
from tests.helpers.toy import REGISTRY, Golden, Models, chain, close, property_test, rule, seeds


def test_golden_lore_mu01(golden: Callable[[str], Golden]) -> None:
    """Its vectors count as n x 1 matrices, so they are given as such; ``out64`` is the same loop in float64."""
    g = golden("lore_mu0.1")
    hparams = g.meta["hparams"]

    def read(prefix: str) -> Weights:
        return Weights.of({n: v.double().reshape(len(v), -1) for n, v in g.part(prefix).items()})

    thetas = [read(f"theta/{i}") for i in range(hparams["T"])]
    options = {"lam": hparams["lam"], "mu": hparams["mu"], "turns": hparams["max_iter"], "absolute": True}
    got = merge_recorded(rule("lore", **options), thetas[0].zeros(), thetas)[-1]
    g.check(got, read("out/theta"))
    assert (got - read("out64/theta")).vector.abs().max() < 1e-12


def by_turns(x: torch.Tensor, mu: float, lam: float, turns: int, seen: list[float]) -> torch.Tensor:
    """The definition, with a full decomposition of every matrix; the objective after each turn into ``seen``."""
    mean = x.mean(0)
    mu = mu * max(float(torch.linalg.matrix_norm(v - mean, 2)) for v in x)
    d = torch.zeros_like(x)
    for _ in range(turns):
        B = (x - d).mean(0)
        U, s, Vt = torch.linalg.svd(x - B, full_matrices=False)
        d = U @ torch.diag_embed((s - mu).clamp_min(0)) @ Vt
        nuclear = torch.linalg.svdvals(d).sum()
        seen.append(float((x - B - d).square().sum() / 2 + mu * nuclear))
    return B + lam * d.mean(0)


@property_test
@given(seeds, st.integers(1, 3), st.booleans(), st.floats(0.01, 0.9), st.sampled_from([1.0, 0.5]))
def test_the_short_way_is_the_long_way(seed: int, rank: int, tall: bool, mu: float, lam: float) -> None:
    """Low-rank task vectors go through a basis of their span; matrices of all ranks, both shapes, two layers at once."""
    g = torch.Generator().manual_seed(seed)
    shape = (14, 9) if tall else (9, 14)

    def draw(rank: int) -> torch.Tensor:
        return (torch.randn(shape[0], rank, generator=g) @ torch.randn(rank, shape[1], generator=g)).double()

    theta_0 = {"low": draw(9), "full": draw(9)}
    thetas = [{"low": theta_0["low"] + draw(rank), "full": theta_0["full"] + draw(9)} for _ in range(3)]
    for names in (["low"], ["low", "full"]):
        w = [Weights.of({n: t[n] for n in names}) for t in (theta_0, *thetas)]
        got = merge_recorded(rule("lore", mu=mu, lam=lam, turns=7), w[0], w[1:])[-1].tensors()
        for n in names:
            objective: list[float] = []
            expected = by_turns(torch.stack([t[n] for t in thetas]), mu, lam, 7, objective)
            torch.testing.assert_close(got[n], expected, rtol=1e-7, atol=1e-7)
            assert all(after <= before * (1 + 1e-12) for before, after in pairwise(objective))


@property_test
@given(seeds, st.permutations(range(4)))
def test_limits_and_order(seed: int, order: list[int]) -> None:
    models = Models.draw(seed)
    mean = chain(rule("average"), models)[-1]
    for options in ({"mu": 1.0}, {"mu": 1e9, "absolute": True}):
        assert close(merge_recorded(rule("lore", **options), models.theta_0, models.thetas)[-1], mean)
    one = merge_recorded(rule("lore", lam=0.7), models.theta_0, models.thetas)[-1]
    other = merge_recorded(rule("lore", lam=0.7), models.theta_0, [models.thetas[i] for i in order])[-1]
    assert close(one, other, 1e-9)
    same = merge_recorded(rule("lore"), models.theta_0, [models.thetas[0]] * 3)
    assert all(close(served, models.thetas[0], 1e-12) for served in same)
    assert not close(one, mean, 1e-3)
    torch.testing.assert_close(one.tensors()["c"], mean.tensors()["c"])


@pytest.mark.parametrize("shift", [0.0, 3.0])
def test_theta_0_is_not_used(shift: float) -> None:
    models = Models.draw(4)
    expected = merge_recorded(rule("lore", lam=0.5), models.theta_0, models.thetas)[-1]
    assert close(merge_recorded(rule("lore", lam=0.5), models.theta_0 + shift, models.thetas)[-1], expected, 1e-10)


def test_with_lam_one_the_turns_settle_on_the_average(record_property: Callable[[str, object], None]) -> None:
    models = Models.draw(5)
    mean = chain(rule("average"), models)[-1]
    apart = [(merge_recorded(rule("lore", turns=n), models.theta_0, models.thetas)[-1] - mean).norm()
             for n in (1, 20, 400)]  # fmt: skip
    record_property("from_the_average_after_1_20_400_turns", [a / mean.norm() for a in apart])
    assert apart[0] > 2 * apart[1] > 4 * apart[2]


def test_all_task_models_are_carried() -> None:
    for T in (1, 3):
        models, lore = Models.draw(0, T), rule("lore")
        chain(lore, models)
        assert nbytes(lore) == T * models.theta_0.nbytes
    assert REGISTRY.rules["lore"].order_invariant
