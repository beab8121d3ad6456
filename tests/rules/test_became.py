"""BECAME's merge."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.common.errors import UserError
from bench.method.carried import nbytes
from bench.method.recorded import RecordedTask, merge_recorded
from bench.method.weights import Weights
from tests.helpers.toy import REGISTRY, Golden, Models, chain, close, noise, property_test, rule, seeds


def test_golden_became(golden: Callable[[str], Golden]) -> None:
    g = golden("became")
    became, first = rule("became", gamma=g.meta["hparams"]["gamma"]), g.part("theta_first")
    became.begin(first.zeros())
    task = RecordedTask(1, *[first.zeros()] * 3, first, statistics={"fisher:empirical": g.part("fisher_first")})
    assert became.merge(task).digest() == first.digest()
    for i in (1, 2):  # every step of the file has data of its own
        theta_gp = g.part(f"theta_gp/{i}")
        task = RecordedTask(i + 1, first, theta_gp, theta_gp, g.part(f"theta_hat/{i}"),
                            statistics={"fisher:empirical": g.part(f"fisher_hat/{i}"), "fisher:empirical@elsewhere": g.part(f"fisher_merged/{i}")})  # fmt: skip
        g.check(became.merge(task), g.part(f"out/step/{i}/theta"))
        g.check(became.F_old, g.part(f"out/step/{i}/fisher_old"))  # type: ignore[attr-defined]
        g.check(task.scalars["lam"], g.array("out/lam")[i - 1])


def steps(models: Models, gamma: float = 1.0) -> tuple[list[Weights], list[float]]:
    """Served weights and lam; the Fisher at merged weights is another one than at trained ones."""
    became, served, out, lams = rule("became", gamma=gamma), models.theta_0, list[Weights](), list[float]()
    became.begin(models.theta_0)
    for t, (theta, F) in enumerate(zip(models.thetas, models.fishers, strict=True), 1):
        task = RecordedTask(t, models.theta_0, served, served, theta, statistics={"fisher:empirical": F, "fisher:empirical@elsewhere": F + 0.1 * t})  # fmt: skip
        served = became.merge(task)
        out.append(served)
        lams.append(task.scalars.get("lam", 1.0))
    return out, lams


@property_test
@given(seeds, st.floats(0, 1))
def test_lam_is_its_equation_with_fishers_at_merged_weights_summed(seed: int, gamma: float) -> None:
    models = Models.draw(seed)
    served, lams = steps(models, gamma)
    old, h = models.fishers[0], models.thetas[0]
    assert served[0].digest() == h.digest()
    for t in range(1, 4):
        D, F = models.thetas[t] - h, models.fishers[t]
        lam = D.dot(F * D) / D.dot((F + old) * D)
        assert lams[t] == pytest.approx(lam)
        assert 0 <= lams[t] <= 1
        h, old = h + D * lam, old * gamma + (F + 0.1 * (t + 1))
        assert close(served[t], h, 1e-10)


@property_test
@given(seeds, st.floats(-8, 8))
def test_at_the_second_task_it_is_pm_and_later_it_is_not(seed: int, exponent: float) -> None:
    models = Models.draw(seed)
    models.fishers = [F * 10**exponent for F in models.fishers]
    told = list[dict[str, float]]()
    pm = merge_recorded(rule("pm_alpha", clamp=False), models.theta_0, models.thetas, models.fishers, told, "merged")
    served, lams = steps(models)
    assert lams[1] == pytest.approx(told[1]["alpha_raw"], rel=1e-9)
    assert close(served[1], pm[1], 1e-10)
    assert lams[2] != pytest.approx(told[2]["alpha_raw"], rel=1e-9)


def test_no_fisher_gives_the_average_and_no_direction_stays() -> None:
    models = Models.draw(0)
    zero = models.theta_0.zeros()
    blind = replace(models, fishers=[zero] * 4)
    assert all(close(a, b) for a, b in zip(chain(rule("became"), blind), chain(rule("average"), blind), strict=True))
    for F in (zero, models.fishers[0]):
        task = RecordedTask(
            2, *[models.theta_0] * 4, statistics={"fisher:empirical": F, "fisher:empirical@elsewhere": F}
        )
        became = rule("became")
        became.begin(models.theta_0)
        assert became.merge(task).digest() == models.theta_0.digest()
        assert task.scalars["lam"] == 0


def test_new_tasks_without_fisher_change_nothing_and_old_ones_without_give_way() -> None:
    models = Models.draw(1, 2)
    zero = models.theta_0.zeros()
    for fishers, expected in (([zero, models.fishers[1]], 1), ([models.fishers[0], zero], 0)):
        assert close(steps(replace(models, fishers=fishers))[0][-1], models.thetas[expected])


def test_a_fisher_at_merged_weights_that_is_not_there_is_named() -> None:
    models = Models.draw(2)
    with pytest.raises(UserError, match=r"task 2: the rule needs fisher:empirical at other weights; give it"):
        merge_recorded(rule("became"), models.theta_0, models.thetas, models.fishers)


def test_the_authors_fisher_is_of_predicted_labels_in_batches_and_reads_no_labels() -> None:
    authors, ours = REGISTRY.resolve("became_ref"), REGISTRY.resolve("became_noproj")
    assert authors.build()[1].needs == ("fisher:argmax_batch", "fisher:argmax_batch@elsewhere")
    assert authors.rule_options["gamma"] == 1.0
    assert (authors.describe()["data"]["merging"], ours.describe()["data"]["merging"]) == ("unlabelled", "labelled")


def test_without_projection_it_has_not_the_papers_name_and_carries_one_vector() -> None:
    method = REGISTRY.resolve("became_noproj")
    assert (method.status, method.start, "became" in REGISTRY.methods) == ("variant", "merged", False)
    for T in (1, 4):
        models, kept = Models.draw(0, T), rule("became")
        chain(kept, models)
        assert nbytes(kept) == noise(0).nbytes
