"""MagMax and its controls."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.method.carried import nbytes
from bench.method.recorded import Recording, merge_recorded, merge_stream
from bench.method.weights import Weights
from tests.helpers.toy import REGISTRY, Golden, Models, chain, close, property_test, rule, seeds


@pytest.mark.parametrize("name", ["magmax", "magmax_dyadic"])
def test_golden_magmax(golden: Callable[[str], Golden], name: str) -> None:
    g, theta_0 = golden(name), golden(name).part("theta0")
    magmax = rule("magmax", lam=g.meta["hparams"]["lam"])
    # From zeros nothing is rounded, which the file with equal magnitudes needs.
    merge_recorded(magmax, theta_0.zeros(), g.parts("tau"))
    g.check(magmax.largest, g.part("out/tau"))  # type: ignore[attr-defined]
    steps = merge_recorded(magmax, theta_0, [theta_0 + tau for tau in g.parts("tau")])
    g.check(steps[-1], g.part("out/theta"))


@property_test
@given(seeds, st.permutations(range(4)))
def test_the_running_maximum_is_the_batch_form_bit_for_bit_in_any_order(seed: int, order: list[int]) -> None:
    models = Models.draw(seed)
    taus = torch.stack([(theta - models.theta_0).vector for theta in models.thetas])
    largest = taus.gather(0, taus.abs().argmax(0, keepdim=True))[0]
    expected = models.theta_0 + models.theta_0.map(lambda _: largest) * 0.5
    got = merge_recorded(rule("magmax"), models.theta_0, [models.thetas[i] for i in order])[-1]
    assert got.digest() == expected.digest()


def test_of_equal_magnitudes_the_later_task_wins() -> None:
    zero = Weights.of({"a": torch.zeros(3)})
    thetas = [Weights.of({"a": torch.tensor(v)}) for v in ([1.0, -2.0, 3.0], [-1.0, 2.0, -2.9])]
    assert merge_recorded(rule("magmax", lam=1.0), zero, thetas)[-1].vector.tolist() == [-1, 2, 3]


@pytest.mark.parametrize("key", ["magmax", "randmix"])
def test_after_one_task_it_is_theta_0_plus_lam_tau(key: str) -> None:
    models = Models.draw(0)
    tau = models.thetas[0] - models.theta_0
    assert close(chain(rule(key, lam=0.7), models)[0], models.theta_0 + tau * 0.7, 1e-14)


def test_tasks_trained_one_after_the_other_are_measured_from_theta_0() -> None:
    for key, start in (("magmax", "previous"), ("maxabs_ind", "pretrained"), ("randmix", "previous")):
        method = REGISTRY.resolve(key)
        assert (method.key, method.start) == (key, start)
        assert method.rule_options == {
            "delta": "total" if start == "previous" else "increment",
            "lam": 1.0 if key == "randmix" else 0.5,
        }
    models = Models.draw(3)
    total = chain(rule("magmax", delta="total"), models, "previous")
    assert total[-1].digest() == chain(rule("magmax"), models, "pretrained")[-1].digest()


@pytest.mark.parametrize("key", ["magmax", "randmix"])
def test_what_it_carries(key: str) -> None:
    for T in (1, 4):
        models, kept = Models.draw(0, T), rule(key)
        chain(kept, models)
        assert nbytes(kept) == models.theta_0.nbytes


def test_randmix_gives_every_task_the_same_share() -> None:
    zero = Weights.of({"a": torch.zeros(150, 200), "b": torch.zeros(30000)})
    thetas = [zero.map(lambda v, i=i: v + i) for i in (1.0, 2.0, 3.0, 4.0)]  # type: ignore[misc]
    steps = merge_recorded(rule("randmix"), zero, thetas)
    for t, served in enumerate(steps, 1):
        shares = [float((served.vector == i).double().mean()) for i in (1, 2, 3, 4)]
        assert shares[t:] == [0.0] * (4 - t)
        assert shares[:t] == pytest.approx([1 / t] * t, abs=0.01)  # the standard error is 0.002
    a, b = (steps[-1].tensors()[n].reshape(-1) for n in "ab")
    assert float((a == b).double().mean()) == pytest.approx(1 / 4, abs=0.01)  # tensors are drawn independently


@property_test
@given(seeds)
def test_randmix_takes_entries_of_tasks_the_same_ones_in_any_order_of_tensors(seed: int) -> None:
    models = Models.draw(seed)
    taus = torch.stack([(theta - models.theta_0).vector for theta in models.thetas])
    mixed = rule("randmix")
    steps = list(merge_stream(mixed, models.theta_0, map(Recording, models.thetas), seed=seed))
    assert bool((taus == mixed.chosen.vector).any(0).all())  # type: ignore[attr-defined]

    swapped = [Weights.of({n: w.tensors()[n] for n in ("c", "b", "a")}) for w in (models.theta_0, *models.thetas)]
    other = list(merge_stream(rule("randmix"), swapped[0], map(Recording, swapped[1:]), seed=seed))
    for one, moved in zip(steps, other, strict=True):
        assert all(torch.equal(v, moved.served.tensors()[n]) for n, v in one.served.items())
    third = list(merge_stream(rule("randmix"), models.theta_0, map(Recording, models.thetas), seed=seed + 1))
    assert third[-1].served.digest() != steps[-1].served.digest()
