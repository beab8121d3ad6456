"""LOT Merging against reference numbers, and against its own least squares."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from bench.method import Gram
from bench.method.recorded import Recording, merge_stream
from bench.method.weights import Weights
from tests.helpers.toy import SHAPES, Golden, Models, chain, close, noise, property_test, rule, seeds


def recordings(models: Models, order: list[int] | None = None) -> list[Recording]:
    return [Recording(models.thetas[i], {"gram": models.grams(i + 1)}) for i in order or range(len(models.thetas))]


def merged(key: str, theta_0: Weights, known: list[Recording], **options: Any) -> Weights:
    return list(merge_stream(rule(key, **options), theta_0, known))[-1].served


@pytest.mark.parametrize("name", ["lot_full_rank", "lot_rank_deficient", "lot_equals_regmean"])
def test_golden_lot(golden: Callable[[str], Golden], name: str) -> None:
    g = golden(name)
    theta_0, known = g.part("theta0"), list[Recording]()
    for i, tau in enumerate(g.parts("tau")):
        grams = {}
        for module, x in g.part(f"x/{i}").items():
            grams[f"{module}.weight"] = Gram(x.square().sum(0) if "norm" in module else x.T @ x, len(x))
        known.append(Recording(theta_0 + tau, {"gram": grams}))
        for module, told in g.part(f"gram_sum/{i}").items() if name == "lot_equals_regmean" else ():
            torch.testing.assert_close(grams[f"{module}.weight"].sum, told)
    got = merged("lot", theta_0, known, lam=g.meta["hparams"]["lam"])
    g.check(got, g.part("out/theta"))
    if name == "lot_equals_regmean":
        alike = [
            Recording(k.trained, {"gram": {n: Gram(G.sum, 1) for n, G in k.statistics["gram"].items()}}) for k in known
        ]
        g.check(merged("regmean", theta_0, alike, a=1.0, ridge=0.0), g.part("out/theta"))


@property_test
@given(seeds, st.permutations(range(4)))
def test_the_order_does_not_matter_and_full_rank_is_regmean(seed: int, order: list[int]) -> None:
    models = Models.draw(seed)
    got = merged("lot", models.theta_0, recordings(models))
    assert close(got, merged("lot", models.theta_0, recordings(models, order)), 1e-10)
    assert close(got, merged("regmean", models.theta_0, recordings(models), a=1.0, ridge=0.0), 1e-8)
    assert close(chain(rule("lot"), models)[0], models.thetas[0], 1e-10)


@property_test
@given(seeds, st.integers(1, 4), st.floats(0.5, 2))
def test_off_the_data_theta_0_stays_and_on_it_one_task_is_kept(seed: int, rows: int, lam: float) -> None:
    models = Models.draw(seed, T=1)
    x = {n: torch.from_numpy(np.random.default_rng(seed).normal(size=(rows, SHAPES[n][1]))) for n in ("a", "b")}
    for v in x.values():  # a Gram matrix squares the condition: what is nearly no direction of the data counts as none
        values = torch.linalg.svdvals(v)
        assume(float(values[min(v.shape) - 1] / values[0]) > 1e-2)
    known = Recording(models.thetas[0], {"gram": {n: Gram(v.T @ v, rows) for n, v in x.items()}})
    got = (merged("lot", models.theta_0, [known], lam=lam) - models.theta_0).tensors()
    tau = (models.thetas[0] - models.theta_0).tensors()
    for name, v in x.items():
        on = torch.linalg.pinv(v) @ v  # the projector onto the rows of the data
        torch.testing.assert_close(got[name], lam * tau[name] @ on, rtol=1e-5, atol=1e-7)


def test_norms_weigh_by_their_inputs_biases_by_rows_and_the_rest_alike() -> None:
    shapes = {"n.weight": (3,), "n.bias": (3,), "free": (2,), "m.weight": (2, 2)}
    taus = [Weights.of({k: torch.randn(s, dtype=torch.float64) for k, s in shapes.items()}) for _ in range(2)]
    squares = [torch.tensor([1.0, 4.0, 0.0], dtype=torch.float64), torch.tensor([3.0, 0.0, 0.0], dtype=torch.float64)]
    known = [
        Recording(tau, {"gram": {"n.weight": Gram(s, rows)}})
        for tau, s, rows in zip(taus, squares, (5, 15), strict=True)
    ]
    steps = list(merge_stream(rule("lot"), taus[0].zeros(), known))
    got, (one, two) = steps[-1].served.tensors(), (tau.tensors() for tau in taus)
    w = torch.tensor([0.25, 1.0, 0.0], dtype=torch.float64), torch.tensor([0.75, 0.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(got["n.weight"], w[0] * one["n.weight"] + w[1] * two["n.weight"])
    torch.testing.assert_close(got["n.bias"], 0.25 * one["n.bias"] + 0.75 * two["n.bias"])
    for name in ("free", "m.weight"):
        torch.testing.assert_close(got[name], (one[name] + two[name]) / 2)
    assert steps[-1].scalars["without_gram"] == 2


def test_task_vectors_of_a_merged_start_are_increments() -> None:
    """The sums are of what each task added, wherever training began."""
    models = Models.draw(0, T=2)
    starts = [models.theta_0, noise(9)]
    shifted = [Recording(start + (theta - models.theta_0), {"gram": models.grams(t)}, start=start)
               for t, (theta, start) in enumerate(zip(models.thetas, starts, strict=True), 1)]  # fmt: skip
    assert close(merged("lot", models.theta_0, shifted), merged("lot", models.theta_0, recordings(models)), 1e-10)
    assert not close(merged("lot", models.theta_0, shifted, delta="total"), merged("lot", models.theta_0, shifted), 0.1)
