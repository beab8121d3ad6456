"""Consensus Merging against its definition, entry by entry."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from bench.method.carried import nbytes
from tests.helpers.toy import Models, chain, close, property_test, rule, seeds


def by_hand(taus: list[list[float]], lam: float, mask_lam: float, k: int) -> list[float]:
    out = []
    for column in zip(*taus, strict=True):
        total = sum(column)
        users = sum(abs(x) > mask_lam * abs(total - x) for x in column)
        out.append(lam * total if users >= min(k, len(taus)) else 0.0)
    return out


@property_test
@given(seeds, st.floats(0, 2), st.floats(0.05, 2), st.integers(0, 6))
def test_it_is_its_definition_after_every_task(seed: int, lam: float, mask_lam: float, k: int) -> None:
    models = Models.draw(seed)
    served = chain(rule("consensus", lam=lam, mask_lam=mask_lam, k=k), models, "pretrained")
    taus = [(theta - models.theta_0).vector.tolist() for theta in models.thetas]
    for t, got in enumerate(served, 1):
        expected = models.theta_0.map(lambda v, t=t: v + v.new_tensor(by_hand(taus[:t], lam, mask_lam, k)))  # type: ignore[misc]
        assert close(got, expected, 1e-12)


@property_test
@given(seeds, st.permutations(range(4)))
def test_the_order_does_not_matter(seed: int, order: list[int]) -> None:
    models = Models.draw(seed)
    shuffled = replace(models, thetas=[models.thetas[i] for i in order])
    one, other = (chain(rule("consensus"), m, "pretrained")[-1] for m in (models, shuffled))
    assert close(one, other)


def test_no_entry_has_to_be_used_by_none_and_that_is_task_arithmetic() -> None:
    models = Models.draw(0)
    for got, expected in zip(
        chain(rule("consensus", k=0), models, "pretrained"),
        chain(rule("task_arithmetic"), models, "pretrained"),
        strict=True,
    ):
        assert close(got, expected)


def test_after_one_task_nothing_is_masked_and_every_task_vector_is_carried() -> None:
    for T in (1, 3):
        models, consensus = Models.draw(1, T), rule("consensus", lam=0.7)
        served = chain(consensus, models, "pretrained")
        assert close(served[0], models.theta_0 + (models.thetas[0] - models.theta_0) * 0.7)
        assert nbytes(consensus) == T * models.theta_0.nbytes
