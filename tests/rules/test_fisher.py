"""Fisher merging: two references, its sums against the batch form, and where nothing is known."""

from __future__ import annotations

import typing
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.method import START
from bench.method.carried import nbytes
from bench.method.recorded import merge_recorded
from bench.method.weights import Weights
from bench.statistics.fisher import KINDS, STATISTIC
from tests.helpers.toy import REGISTRY, Golden, Models, chain, close, noise, property_test, rule, seeds


def last(models: Models, **options: object) -> Weights:
    return merge_recorded(rule("fisher", **options), models.theta_0, models.thetas, models.fishers)[-1]


@pytest.mark.parametrize("theta_0", ["none", "near"])  # what the sums are centred on does not matter
@pytest.mark.parametrize("name", ["fisher_merging_plain", "fisher_merging_normalized"])
def test_golden_fisher(golden: Callable[[str], Golden], name: str, theta_0: str) -> None:
    g, thetas = golden(name), golden(name).parts("theta")
    told = g.meta["hparams"]
    if told["normalize"]:
        assert told["eps"] == 1e-6
        merging = rule("fisher", normalize="fusionbench")
    else:
        merging = rule("fisher", eps=told["eps"])
    origin = thetas[0].zeros() if theta_0 == "none" else thetas[1]
    g.check(merge_recorded(merging, origin, thetas, g.parts("fisher"))[-1], g.part("out/theta"))


@property_test
@given(seeds, st.sampled_from(["none", "fusionbench"]))
def test_the_two_sums_are_the_batch_form_at_every_task(seed: int, normalize: str) -> None:
    models = Models.draw(seed)
    got = chain(rule("fisher", normalize=normalize), models)
    for t in range(1, 5):
        if normalize == "none":
            weights = [F + float(F.vector.mean()) * 1e-6 for F in models.fishers[:t]]
        else:
            weights = [(F + 1e-6) / (F.norm() + 1e-6) for F in models.fishers[:t]]
        top = sum((w * theta for w, theta in zip(weights, models.thetas, strict=False)), models.theta_0.zeros())
        assert close(got[t - 1], top / sum(weights, models.theta_0.zeros()), 1e-10)
    assert close(got[0], models.thetas[0], 1e-10)


@property_test
@given(seeds, st.permutations(range(4)))
def test_the_order_of_tasks_does_not_matter(seed: int, order: list[int]) -> None:
    models = Models.draw(seed)
    shuffled = replace(
        models, thetas=[models.thetas[i] for i in order], fishers=[models.fishers[i] for i in order]
    )  # fmt: skip
    for normalize in ("none", "fusionbench"):
        assert close(last(models, normalize=normalize), last(shuffled, normalize=normalize), 1e-10)


@property_test
@given(seeds, st.floats(-8, 8))
def test_one_fisher_for_all_tasks_gives_the_average_and_a_common_factor_cancels(seed: int, exponent: float) -> None:
    models = Models.draw(seed)
    for got, mean in zip(chain(rule("fisher"), replace(models, fishers=[models.fishers[0]] * 4)),
                         chain(rule("average"), models), strict=True):  # fmt: skip
        assert close(got, mean, 1e-10)
    scaled = replace(models, fishers=[F * 10**exponent for F in models.fishers])
    assert close(last(scaled), last(models), 1e-10)


def test_what_fusionbench_adds_swamps_small_fishers_and_what_we_add_does_not() -> None:
    models = Models.draw(0)
    small = replace(models, fishers=[F * 1e-10 for F in models.fishers])
    mean = chain(rule("average"), models)[-1]
    assert close(last(small, normalize="fusionbench"), mean, 1e-3)
    assert not close(last(small), mean, 1e-1)


def test_where_no_task_knows_anything_the_average_is_served() -> None:
    models = Models.draw(1)
    zero = models.theta_0.zeros()
    mean = chain(rule("average"), models)
    for options in ({}, {"eps": 0.0}, {"normalize": "fusionbench"}):
        served = chain(rule("fisher", **options), replace(models, fishers=[zero] * 4))
        assert all(close(got, expected) for got, expected in zip(served, mean, strict=True))
    for start in ("pretrained", "previous"):  # what was served so far is that average wherever training began
        assert close(chain(rule("fisher"), replace(models, fishers=[zero] * 4), start)[-1], mean[-1])


def test_entries_without_fisher_are_averaged_by_the_tasks_mean_fisher_or_plainly_without_eps() -> None:
    models = Models.draw(2)
    blind = slice(10, 20)
    models.fishers = [F.map(lambda v: torch.cat([v[:10], v[10:20] * 0, v[20:]])) for F in models.fishers]
    mean = chain(rule("average"), models)[-1]
    torch.testing.assert_close(last(models, eps=0.0).vector[blind], mean.vector[blind])
    even = replace(models, fishers=[F / float(F.vector.mean()) for F in models.fishers])
    torch.testing.assert_close(last(even).vector[blind], mean.vector[blind])
    w = torch.stack([F.vector.mean() for F in models.fishers])
    expected = (w[:, None] * torch.stack([theta.vector for theta in models.thetas])).sum(0) / w.sum()
    torch.testing.assert_close(last(models).vector[blind], expected[blind])


def test_the_first_fisher_decides_where_only_averages_were_served_before() -> None:
    models = Models.draw(3)
    zero = models.theta_0.zeros()
    served = chain(rule("fisher"), replace(models, fishers=[zero, zero, models.fishers[2], zero]))
    assert close(served[1], (models.thetas[0] + models.thetas[1]) / 2)
    assert close(served[2], models.thetas[2], 1e-10)
    assert close(served[3], models.thetas[2], 1e-10)


def test_float32_stays_close_to_float64() -> None:
    models = Models.draw(4)
    small = replace(models, fishers=[F * 1e-9 for F in models.fishers])
    single = [w.map(lambda v: v.float()) for w in (small.theta_0, *small.thetas, *small.fishers)]
    assert close(last(Models(single[0], single[1:5], single[5:])).map(lambda v: v.double()), last(small), 1e-5)


@property_test
@given(seeds)
def test_it_is_the_free_minimum_that_pms_line_search_cannot_beat(seed: int) -> None:
    models = Models.draw(seed)

    def Q(x: Weights) -> float:
        return sum((x - theta).dot(F * (x - theta)) for theta, F in zip(models.thetas, models.fishers, strict=True))

    best = last(models, eps=0.0)
    pm = merge_recorded(rule("pm_alpha"), models.theta_0, models.thetas, models.fishers)[-1]
    assert Q(best) <= Q(pm) + 1e-9
    assert all(Q(best) <= Q(best + noise(seed + i, 0.01)) for i in range(5))


# ---- as the authors have it ----------------------------------------------------------------------------------------
def authors(models: Models, target: int = 0) -> torch.Tensor:
    """Fisher over its norm; the target's floored before, and not in the norm."""
    top = bottom = torch.zeros_like(models.theta_0.vector)
    for i, (theta, F) in enumerate(zip(models.thetas, models.fishers, strict=True)):
        diagonal = torch.tensor([max(v, 1e-6) if i == target else v for v in F.vector.tolist()], dtype=torch.float64)
        diagonal = diagonal / sum(v * v for v in F.vector.tolist()) ** 0.5
        top, bottom = top + diagonal * theta.vector, bottom + diagonal
    return top / bottom


@property_test
@given(seeds, st.floats(-8, 2))
def test_the_authors_merge_is_its_equation_with_the_first_task_as_target(seed: int, exponent: float) -> None:
    models = Models.draw(seed)
    models.fishers = [F * 10**exponent for F in models.fishers]
    for t, served in enumerate(chain(rule("fisher", normalize="l2"), models), 1):
        seen = Models(models.theta_0, models.thetas[:t], models.fishers[:t])
        torch.testing.assert_close(served.vector, authors(seen), rtol=1e-9, atol=1e-9)


def test_entries_that_nobody_knows_go_to_the_first_task_and_the_others_do_not() -> None:
    models = Models.draw(5)
    models.fishers = [F.map(lambda v: torch.cat([v[:10], v[10:20] * 0, v[20:]])) for F in models.fishers]
    served = last(models, normalize="l2").vector
    torch.testing.assert_close(served[10:20], models.thetas[0].vector[10:20])
    assert float((served - models.thetas[0].vector)[20:].abs().min()) > 0
    flat = replace(models, fishers=[models.theta_0.zeros()] * 4)
    assert close(last(flat, normalize="l2"), models.thetas[0])
    late = replace(models, fishers=[models.theta_0.zeros(), *models.fishers[1:]])
    assert close(chain(rule("fisher", normalize="l2"), late)[0], models.thetas[0])


def test_a_tasks_factor_cancels_under_the_norm_unless_the_floor_bites() -> None:
    models = Models.draw(6)
    models.fishers = [F + 1e-3 for F in models.fishers]
    louder = replace(models, fishers=[F * 10**i for i, F in enumerate(models.fishers)])
    assert close(last(louder, normalize="l2"), last(models, normalize="l2"), 1e-10)
    assert not close(last(louder), last(models), 1e-2)


def test_what_the_names_stand_for_at_every_start_and_under_every_trainer() -> None:
    for start in START:
        for spelling in (f"fisher@{start}", f"plain+fisher@{start}", f"perturb+fisher@{start}"):
            options = REGISTRY.resolve(spelling).rule_options
            assert (options["kind"], options["normalize"]) == ("exact", "l2")
        options = REGISTRY.resolve(f"fisher_empirical@{start}").rule_options
        assert (options["kind"], options["normalize"], options["eps"]) == ("empirical", "none", 1e-6)
    named = REGISTRY.resolve("fisher_fb").rule_options
    assert (named["kind"], named["normalize"]) == ("sqrtp_batch", "fusionbench")


def test_kinds_what_they_read_and_what_it_carries() -> None:
    kinds = typing.get_args(typing.get_type_hints(REGISTRY.rules["fisher"])["kind"])
    assert sorted(kinds) == sorted(KINDS)
    for kind in kinds:
        labels = STATISTIC.reads(kind) == "labels"
        assert rule("fisher", kind=kind).reads == ("labelled" if labels else "unlabelled")
    assert REGISTRY.resolve("fisher").describe()["data"]["merging"] == "unlabelled"
    assert REGISTRY.resolve("fisher_empirical").describe()["data"]["merging"] == "labelled"
    for T in (1, 4):
        models, kept = Models.draw(0, T), rule("fisher")
        chain(kept, models)
        assert nbytes(kept) == 2 * models.theta_0.nbytes
