"""CMM's blend."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.common.errors import UserError
from bench.method.carried import nbytes
from bench.method.recorded import Recording, merge_recorded, merge_stream
from bench.method.weights import Weights
from tests.helpers.toy import REGISTRY, Golden, Models, chain, close, property_test, rule, seeds


def test_golden_cmm(golden: Callable[[str], Golden]) -> None:
    g = golden("cmm")
    thetas, bare = g.parts("theta"), g.meta["hparams"]["without_fisher"]

    def whole(G: Weights) -> Weights:
        """A tensor without second moments has zeros here."""
        return Weights.of({n: G.tensors().get(n, torch.zeros_like(v)) for n, v in thetas[0].items()})

    blend = rule("cmm_blend", alpha=g.meta["hparams"]["alpha"])
    stream = (Recording(w, recorded={"grad_sq": [whole(G)]}) for w, G in zip(thetas, g.parts("fisher"), strict=True))
    for t, task in enumerate(merge_stream(blend, thetas[0].zeros(), stream, "merged")):
        g.check(task.served, g.part(f"out/step/{t}/theta"))
        if t:
            F: Weights = blend.F  # type: ignore[attr-defined]
            g.check(Weights.of({n: v for n, v in F.items() if n != bare}), g.part(f"out/step/{t}/fisher"))
    g.check(task.served, g.part("out/theta"))
    assert not bool(F.tensors()[bare].any())


@property_test
@given(seeds, st.floats(0, 1))
def test_it_is_its_equation_with_an_average_of_all_squared_gradients(seed: int, alpha: float) -> None:
    models = Models.draw(seed)
    served, F = models.thetas[0], models.fishers[0]
    for t, got in enumerate(chain(rule("cmm_blend", alpha=alpha), models)):
        if t:
            old, new = F * (1 - alpha), models.fishers[t] * alpha
            F = old + new
            served = (old * served + new * models.thetas[t]) / F.vector
        assert close(got, served, 1e-10)


@property_test
@given(seeds, st.floats(0, 1))
def test_equal_and_no_squared_gradients_give_coma(seed: int, alpha: float) -> None:
    models = Models.draw(seed)
    plain = chain(rule("coma", alpha=alpha), models)
    for G in (models.fishers[0], models.theta_0.zeros()):
        blended = chain(rule("cmm_blend", alpha=alpha), replace(models, fishers=[G] * 4))
        assert all(close(a, b, 1e-10) for a, b in zip(blended, plain, strict=True))
        assert blended[0].digest() == models.thetas[0].digest()


def test_it_asks_training_for_squared_gradients_and_says_where_there_are_none() -> None:
    assert rule("cmm_blend").record == ("grad_sq",)
    models = Models.draw(0)
    with pytest.raises(UserError, match=r"task 1: the rule needs a by-product of training \(grad_sq\)"):
        merge_recorded(rule("cmm_blend"), models.theta_0, models.thetas)


def test_a_part_of_a_paper_has_not_its_name_and_carries_one_vector() -> None:
    method = REGISTRY.resolve("cmm_blend")
    assert (method.status, method.start, "cmm" in REGISTRY.methods) == ("variant", "merged", False)
    for T in (1, 4):
        models, kept = Models.draw(0, T), rule("cmm_blend")
        chain(kept, models)
        assert nbytes(kept) == models.theta_0.nbytes
