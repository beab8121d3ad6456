"""Model Breadcrumbs against sorted lists."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.method.carried import nbytes
from bench.method.recorded import merge_recorded
from bench.method.weights import Weights
from tests.helpers.toy import Models, chain, close, property_test, rule, seeds


def middle(x: list[float], beta: float, gamma: float) -> list[float]:
    n = len(x)
    ranked = sorted(range(n), key=lambda i: (-abs(x[i]), i))
    largest = min(round(gamma * n), n - 1)
    kept = ranked[largest:][: max(1, n - largest - round(beta * n))]
    return [v if i in kept else 0.0 for i, v in enumerate(x)]


@property_test
@given(seeds, st.floats(0, 0.95), st.floats(0, 0.95), st.sampled_from(["tensor", "row"]))
def test_the_middle_of_every_tensor_or_row_is_added(seed: int, beta: float, gamma: float, scope: str) -> None:
    models = Models.draw(seed)
    total = models.theta_0.zeros()
    served = chain(rule("breadcrumbs", beta=beta, gamma=gamma, lam=0.4, scope=scope), models, "pretrained")
    for got, theta in zip(served, models.thetas, strict=True):
        tau = theta - models.theta_0
        thinned = {}
        for name, x in tau.items():
            rows = x.reshape(-1, x.shape[-1]) if scope == "row" else x.reshape(1, -1)
            thinned[name] = torch.tensor([middle(row.tolist(), beta, gamma) for row in rows], dtype=x.dtype)
        total = total + tau.with_tensors(thinned)
        assert close(got, models.theta_0 + total * 0.4, 1e-12)


def test_no_tails_is_task_arithmetic_and_one_sum_is_carried() -> None:
    models, crumbs = Models.draw(0), rule("breadcrumbs", beta=0.0, gamma=0.0)
    same = chain(rule("task_arithmetic"), models, "pretrained")
    assert [w.digest() for w in chain(crumbs, models, "pretrained")] == [w.digest() for w in same]
    assert nbytes(crumbs) == models.theta_0.nbytes


@pytest.mark.parametrize("scope", ["tensor", "row"])
def test_one_entry_stays_however_much_is_dropped(scope: str) -> None:
    theta_0 = Weights.of({"one": torch.zeros(1), "many": torch.zeros(2, 3)})
    theta = Weights.of({"one": torch.ones(1), "many": torch.tensor([[3.0, -2.0, 1.0], [4.0, 5.0, 6.0]])})
    [got] = merge_recorded(rule("breadcrumbs", beta=0.9, gamma=0.34, lam=1.0, scope=scope), theta_0, [theta])
    expected = [1, 0, 0, 0, 4, 0, 0] if scope == "tensor" else [1, 0, -2, 0, 0, 5, 0]
    assert got.vector.tolist() == expected


@property_test
@given(seeds, st.permutations(range(4)))
def test_the_order_does_not_matter(seed: int, order: list[int]) -> None:
    models = Models.draw(seed)
    shuffled = replace(models, thetas=[models.thetas[i] for i in order])
    one, other = (chain(rule("breadcrumbs"), m, "pretrained")[-1] for m in (models, shuffled))
    assert close(one, other)
