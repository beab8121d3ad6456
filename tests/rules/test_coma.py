"""CoMA and CoFiMA: the authors' numbers, heads included, and the cases that their code leaves undefined."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.method.carried import nbytes
from bench.method.recorded import Recording, merge_recorded, merge_stream
from bench.method.weights import Weights
from tests.helpers.toy import REGISTRY, Golden, Models, chain, close, noise, property_test, rule, seeds


@pytest.mark.parametrize("name", ["coma", "cofima"])
def test_golden_coma(golden: Callable[[str], Golden], name: str) -> None:
    """A head that appears with task i is copied there and blended from then on: a stream that begins at i."""
    g, checked = golden(name), 0
    thetas = g.parts("theta")
    fishers = g.parts("fisher") if name == "cofima" else [theta.zeros() for theta in thetas]
    known: set[str] = set()
    for i in range(3):
        new = [n for n in thetas[i].layout.names if n not in known]
        known |= set(new)

        def only(w: Weights, new: list[str] = new) -> Weights:
            return Weights.of({n: w.tensors()[n] for n in new})

        ours, theirs = [only(w) for w in thetas[i:]], [only(F) for F in fishers[i:]]
        steps = merge_recorded(
            rule(name, alpha=g.meta["hparams"]["alpha"]), ours[0].zeros(), ours, theirs, start="merged"
        )
        for t, served in enumerate(steps, i):
            g.check(served, only(g.part(f"out/step/{t}/theta")))
            checked += len(new)
        g.check(steps[-1], only(g.part("out/theta")))
    assert checked == 7 + 8 + 9


def test_golden_cofima_zero_fisher(golden: Callable[[str], Golden]) -> None:
    g = golden("cofima_zero_fisher")
    thetas = g.parts("theta")
    served = merge_recorded(
        rule("cofima", alpha=g.meta["hparams"]["alpha"]), thetas[0].zeros(), thetas, g.parts("fisher")
    )
    undefined = g.part("undefined").vector > 0
    assert bool(undefined.any())
    assert not bool(undefined.all())
    expected = g.part("out/theta").map(lambda v: g.part("fallback/theta").vector.where(undefined, v))
    g.check(served[-1], expected)


@property_test
@given(seeds, st.floats(0, 1))
def test_cofima_is_its_equation_with_the_last_two_fishers_alone(seed: int, alpha: float) -> None:
    models = Models.draw(seed)
    served = models.thetas[0]
    for t, got in enumerate(chain(rule("cofima", alpha=alpha), models)):
        if t:
            f, g = models.fishers[t - 1] * (1 - alpha), models.fishers[t] * alpha
            served = (f * served + g * models.thetas[t]) / (f.vector + g.vector)
        assert close(got, served, 1e-10)
    changed = replace(models, fishers=[noise(seed + 7) ** 2, *models.fishers[1:]])
    task, parts = models.task(3, models.thetas[1]), []
    for m in (models, changed):
        cofima = rule("cofima", alpha=alpha)
        chain(cofima, Models(m.theta_0, m.thetas[:2], m.fishers[:2]))
        parts.append(cofima.merge(task).digest())
    assert parts[0] == parts[1]  # the first task's Fisher is forgotten


@property_test
@given(seeds, st.floats(0, 1), st.floats(-8, 8))
def test_equal_fishers_and_no_fishers_give_coma(seed: int, alpha: float, exponent: float) -> None:
    models = Models.draw(seed)
    plain = chain(rule("coma", alpha=alpha), models)
    for F in (models.fishers[0] * 10**exponent, models.theta_0.zeros()):
        blended = chain(rule("cofima", alpha=alpha), replace(models, fishers=[F] * 4))
        assert all(close(a, b, 1e-10) for a, b in zip(blended, plain, strict=True))


@pytest.mark.parametrize("key", ["coma", "cofima"])
def test_the_ends_of_alpha_and_the_first_task(key: str) -> None:
    models = Models.draw(0)
    models.fishers = [F.map(lambda v: torch.cat([v[:9] * 0, v[9:]])) for F in models.fishers]
    assert all(close(got, theta) for got, theta in zip(chain(rule(key, alpha=1.0), models), models.thetas, strict=True))
    for alpha in (0.0, 0.4):
        assert chain(rule(key, alpha=alpha), models)[0].digest() == models.thetas[0].digest()
    assert {w.digest() for w in chain(rule(key, alpha=0.0), models)} == {models.thetas[0].digest()}


def test_fishers_that_are_0_on_one_side_are_decided_by_the_other() -> None:
    models = Models.draw(1, 2)
    zero = models.theta_0.zeros()
    for fishers, expected in (([zero, models.fishers[1]], 1), ([models.fishers[0], zero], 0)):
        assert close(chain(rule("cofima"), replace(models, fishers=fishers))[-1], models.thetas[expected])


def test_the_authors_fisher_is_of_batches_and_cut_off() -> None:
    models = Models.draw(2)
    assert REGISTRY.resolve("cofima_ref").rule_options == {"alpha": 0.5, "estimator": "batchmean_seen"}

    def served(fishers: list[Weights], kind: str, estimator: str) -> Weights:
        stream = (Recording(w, {f"fisher:{kind}": F}) for w, F in zip(models.thetas, fishers, strict=True))
        return list(merge_stream(rule("cofima", estimator=estimator), models.theta_0, stream, "merged"))[-1].served

    large = [F + 1.0 for F in models.fishers]
    assert close(served(large, "batchmean_seen", "batchmean_seen"), chain(rule("coma"), models)[-1])
    cut = [F.map(lambda v: v.clamp(max=1e-4)) for F in models.fishers]
    some = served([F * 1e-4 for F in models.fishers], "batchmean_seen", "batchmean_seen")
    assert close(
        some, served([(F * 1e-4).map(lambda v: v.clamp(max=1e-4)) for F in models.fishers], "empirical", "empirical")
    )
    assert close(served(models.fishers, "batchmean_seen", "batchmean_seen"), served(cut, "empirical", "empirical"))


@pytest.mark.parametrize(("key", "vectors"), [("coma", 0), ("cofima", 1)])
def test_what_it_carries(key: str, vectors: int) -> None:
    for T in (1, 4):
        models, kept = Models.draw(0, T), rule(key)
        chain(kept, models)
        assert nbytes(kept) == vectors * models.theta_0.nbytes
