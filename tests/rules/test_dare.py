"""DARE with masks given and drawn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bench.common.errors import UserError
from bench.method import Task
from bench.method.carried import nbytes
from bench.method.recorded import Recording, merge_recorded, merge_stream
from bench.method.tools.sparsify import draw, restore_norm
from bench.method.weights import Weights
from tests.helpers.toy import REGISTRY, Golden, Models, chain, close, property_test, rule, seeds

Dare: Any = REGISTRY.rules["dare"]


class Given(Dare):  # type: ignore[misc]
    """With the masks of a file."""

    masks: ClassVar[list[Weights]]

    def mask(self, task: Task, tau: Weights) -> Tensor:
        return self.masks[task.t - 1].vector > 0


def given_masks(g: Golden, **options: Any) -> tuple[list[Weights], Given]:
    dare, theta_0 = Given(**options), g.part("theta0")
    Given.masks = g.parts("mask")
    return merge_recorded(dare, theta_0, [theta_0 + tau for tau in g.parts("tau")]), dare


# ---- reference numbers ---------------------------------------------------------------------------------------------
def test_golden_dare_given_mask(golden: Callable[[str], Golden]) -> None:
    g = golden("dare_given_mask")
    steps, dare = given_masks(g, p=g.meta["hparams"]["p"], lam=g.meta["hparams"]["lam"])
    g.check(steps[-1], g.part("out/theta"))
    dropped = g.parts("out/dropped")
    g.check(dare.kept[0], dropped[0] + dropped[1] + dropped[2])


def test_golden_dare_mergekit_rescale(golden: Callable[[str], Golden]) -> None:
    g = golden("dare_mergekit_rescale")
    for norm in g.meta["hparams"]["norms"]:
        for i, (tau, mask) in enumerate(zip(g.parts("tau"), g.parts("mask"), strict=True)):
            kept = (tau * mask).tensors()
            got = {n: restore_norm(kept[n], v, norm) for n, v in tau.items()}
            g.check(Weights.of(got), g.part(f"out/{norm}/{i}"))
    steps, _ = given_masks(g, rescale="l1", lam=1.0)
    l1 = g.parts("out/l1")
    g.check(steps[-1], g.part("theta0") + l1[0] + l1[1])


# ---- the rules below it --------------------------------------------------------------------------------------------
@property_test
@given(seeds)
def test_dropping_nothing_is_the_rule_below(seed: int) -> None:
    models = Models.draw(seed)
    for then, other in (
        ({"then": "linear", "lam": 0.3}, rule("task_arithmetic", lam=0.3)),
        ({"then": "average", "lam": 1.0}, rule("task_arithmetic", lam=1.0, over_t=True)),
        ({"then": "ties", "lam": 0.5}, rule("ties", combine="sum", lam=0.5)),
    ):
        got, expected = (chain(r, models, "pretrained") for r in (rule("dare", p=0.0, **then), other))
        assert [w.digest() for w in got] == [w.digest() for w in expected]


@pytest.mark.parametrize("then", ["linear", "average"])
def test_the_running_sum_is_the_sum_of_all_thinned_task_vectors(then: str) -> None:
    models = Models.draw(2)
    theta_0 = models.theta_0
    steps = list(merge_stream(rule("dare", then=then), theta_0, map(Recording, models.thetas), seed=5))
    fresh = rule("dare", then=then)
    fresh.begin(theta_0)
    for t, task in enumerate(steps, 1):
        again = [fresh.thinned(before) for before in steps[:t]]  # type: ignore[attr-defined]
        scale = 0.3 / t if then == "average" else 0.3
        assert close(task.served, theta_0 + sum(again, theta_0.zeros()) * scale)


def test_what_it_carries() -> None:
    for T in (1, 4):
        models = Models.draw(0, T)
        for then, vectors in (("linear", 1), ("average", 1), ("ties", T)):
            kept = rule("dare", then=then)
            chain(kept, models)
            assert nbytes(kept) == vectors * models.theta_0.nbytes


# ---- masks ---------------------------------------------------------------------------------------------------------
def thinned(models: Models, seed: int, **options: Any) -> list[Weights]:
    """Of every task."""
    dare = rule("dare", **options)
    tasks = list(merge_stream(dare, models.theta_0, map(Recording, models.thetas), seed=seed))
    return [dare.thinned(task) for task in tasks]  # type: ignore[attr-defined]


@pytest.mark.parametrize("p", [0.5, 0.9])
def test_over_many_seeds_the_mean_is_the_task_vector(p: float) -> None:
    models = Models.draw(0, 1)
    tau = models.thetas[0] - models.theta_0
    draws = torch.stack([thinned(models, seed, p=p)[0].vector for seed in range(800)])
    kept = draws != 0
    torch.testing.assert_close(draws[kept], (tau.vector / (1 - p)).expand_as(draws)[kept])
    per_entry = kept.double().mean(0)  # its standard error is at most 0.018
    assert float((per_entry - (1 - p)).abs().max()) < 0.08
    assert abs(float(per_entry.mean()) - (1 - p)) < 0.01


@property_test
@given(seeds)
def test_a_mask_belongs_to_run_task_and_tensor_name_not_to_the_order_of_tensors(seed: int) -> None:
    models = Models.draw(seed)
    swapped = [Weights.of({n: w.tensors()[n] for n in ("c", "a", "b")}) for w in (models.theta_0, *models.thetas)]
    other = Models(swapped[0], swapped[1:], [])
    for options in ({}, {"rescale": "l1"}):
        one, again, moved = thinned(models, 3, **options), thinned(models, 3, **options), thinned(other, 3, **options)
        for i in range(4):
            assert one[i].digest() == again[i].digest()
            assert all(torch.equal(v, moved[i].tensors()[n]) for n, v in one[i].items())
    masks = {tuple((w.vector != 0).tolist()) for run in (3, 4) for w in thinned(models, run)}
    assert len(masks) == 8  # two runs, four tasks


def test_draws_at_probability_zero_and_one() -> None:
    models = Models.draw(0, 1)
    [task] = merge_stream(rule("average"), models.theta_0, map(Recording, models.thetas))
    assert bool(draw(models.theta_0, 1.0, task.rng).all())
    assert not bool(draw(models.theta_0, 0.0, task.rng).any())


@property_test
@given(seeds, st.floats(0, 0.99))
def test_mergekits_rescaling_keeps_the_l1_norm_of_every_tensor(seed: int, p: float) -> None:
    models = Models.draw(seed, 1)
    [got] = thinned(models, seed, rescale="l1", p=p)
    for name, before in (models.thetas[0] - models.theta_0).items():
        after = got.tensors()[name]
        assert float(after.abs().sum()) == pytest.approx(float(before.abs().sum()) if bool(after.any()) else 0.0)


def test_dropping_everything_is_refused() -> None:
    for p in ("1", "1.5", "-0.1"):
        with pytest.raises(UserError, match=f"p='{p}'"):
            REGISTRY.resolve(f"dare:p={p}")


def test_presets() -> None:
    for key, then, lam in (("dare", "linear", 0.3), ("dare_average", "average", 1.0), ("dare_ties", "ties", 0.5)):
        method = REGISTRY.resolve(key)
        told = [method.rule_options[name] for name in ("p", "then", "lam", "density", "rescale")]
        assert told == [0.5, then, lam, 0.2, "bernoulli"]
        assert (method.key, method.start) == (key, "pretrained")
    assert REGISTRY.resolve("dare_mergekit").rule_options["rescale"] == "l1"
