"""EWC: running sums, the gradient through LoRA, the online form."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bench.common.paths import ROOT
from bench.method.carried import nbytes
from bench.method.recorded import RecordedTask
from bench.method.weights import Weights
from bench.model.adapters.lora import LoRA
from bench.plan.grid import cell_of
from tests.helpers.toy import REGISTRY, SHAPES, Models, noise, property_test, reloaded, seeds, trainer

Record = Callable[[str, object], None]


# ---- EWC -----------------------------------------------------------------------------------------------------------
def begun(models: Models, upto: int, **options: Any) -> Any:
    """EWC after the first ``upto`` tasks."""
    ewc = trainer("ewc", **options)
    ewc.begin(models.theta_0)
    for t in range(1, upto + 1):
        ewc.learnt(models.task(t, models.theta_0))
    return ewc


def explicit(theta: Weights, pairs: list[tuple[Weights, Weights]], lam: float) -> Tensor:
    """lam/2 sum_i F_i (theta - theta_i)^2, from what a method with O(T) memory would have stored."""
    return lam / 2 * sum((((theta - anchor) ** 2) * F).sum() for anchor, F in pairs)  # type: ignore[return-value]


@property_test
@given(seeds, st.integers(0, 4), st.floats(0.01, 1e4))
def test_ewcs_running_sums_are_the_sum_over_stored_tasks(seed: int, upto: int, lam: float) -> None:
    models = Models.draw(seed)
    ewc = begun(models, upto, lam=lam)
    pairs = list(zip(models.thetas, models.fishers, strict=True))[:upto]
    values, gradients = [], []
    for penalty in (ewc.penalty, lambda w: explicit(w, pairs, lam)):
        theta = noise(seed + 50).map(lambda v: v.requires_grad_())
        value = penalty(theta) + 0 * theta.sum()
        value.backward()
        values.append(value.item())
        gradients.append(theta.vector.grad)
    assert values[0] == pytest.approx(values[1], rel=1e-9)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-9, atol=1e-9 * lam)


def test_ewcs_gradient_reaches_loras_factors_through_the_dense_weight() -> None:
    models = Models.draw(1)
    names = ("a", "b")  # the matrices
    cut = [Weights.of({n: w.tensors()[n] for n in names}) for w in (models.theta_0, *models.thetas, *models.fishers)]
    pairs = list(zip(cut[1:4], cut[5:8], strict=True))
    ewc = trainer("ewc", lam=3.0)
    ewc.begin(cut[0])
    for t, (theta, F) in enumerate(pairs, 1):
        ewc.learnt(RecordedTask(t, cut[0], cut[0], cut[0], theta, {}, {"fisher:empirical": F}))
    gradients = []
    for penalty in (ewc.penalty, lambda w: explicit(w, pairs, 3.0)):
        generator = torch.Generator().manual_seed(0)
        factors = {n: (torch.randn(2, SHAPES[n][1], generator=generator, dtype=torch.float64),
                       torch.randn(SHAPES[n][0], 2, generator=generator, dtype=torch.float64))
                   for n in names}  # fmt: skip
        lora = LoRA(factors, cut[0], 0.5)
        penalty(lora.weights()).backward()
        gradients.append([p.grad for p in lora.parameters])
    assert len(gradients[0]) == 4
    for got, expected in zip(*gradients, strict=True):
        assert bool(expected.any())
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


@property_test
@given(seeds, st.floats(0.1, 1))
def test_online_ewc_is_separate_at_the_second_task_and_decays_afterwards(seed: int, gamma: float) -> None:
    models, theta = Models.draw(seed), noise(seed + 50)
    one, other = (begun(models, 1, lam=2.0, form=f) for f in ("separate", "online"))
    assert float(one.penalty(theta)) == pytest.approx(float(other.penalty(theta)), rel=1e-12)
    later = begun(models, 3, lam=2.0, form="online", gamma=gamma)
    F = models.fishers[0] * gamma**2 + models.fishers[1] * gamma + models.fishers[2]
    assert float(later.penalty(theta)) == pytest.approx(float(explicit(theta, [(models.thetas[2], F)], 2.0)), rel=1e-9)


@property_test
@given(seeds, st.integers(1, 4))
def test_online_ewc_and_its_gradient_vanish_at_the_anchor(seed: int, upto: int) -> None:
    models = Models.draw(seed)
    ewc = begun(models, upto, lam=5.0, form="online", gamma=0.9)
    theta = models.thetas[upto - 1].map(lambda v: v.clone().requires_grad_())
    value = ewc.penalty(theta)
    value.backward()
    assert theta.vector.grad is not None
    scale = float(ewc.penalty(models.theta_0))
    assert abs(value.item()) < 1e-12 * scale
    assert float(theta.vector.grad.abs().max()) < 1e-12 * scale
    assert float(ewc.penalty(models.thetas[upto - 1] + 0.01)) > 0


def test_ewcs_fisher_is_of_the_kind_that_is_asked_for_and_of_labels_by_default() -> None:
    models = Models.draw(3)
    zero, statistics = models.theta_0, {"fisher:empirical": models.fishers[0], "fisher:exact": models.fishers[1]}
    task = RecordedTask(1, zero, zero, zero, models.thetas[0], {}, statistics)
    for options, F in (({}, 0), ({"kind": "empirical"}, 0), ({"kind": "exact"}, 1)):
        ewc = trainer("ewc", lam=1.0, **options)
        ewc.begin(models.theta_0)
        ewc.learnt(task)
        assert ewc.S.digest() == models.fishers[F].digest()
        assert ewc.needs == (f"fisher:{options.get('kind', 'empirical')}",)


def test_ewcs_memory_is_two_vectors_and_survives_a_file(tmp_path: Path) -> None:
    models = Models.draw(2)
    for form in ("separate", "online"):
        ewc = begun(models, 3, lam=1.0, form=form)
        assert nbytes(ewc) == 2 * models.theta_0.nbytes
        assert float(reloaded(ewc, tmp_path).penalty(noise(9))) == float(ewc.penalty(noise(9)))


def test_a_stored_training_of_ewc_is_named_after_its_fishers_sample() -> None:
    request = {"dataset": "digits", "n_tasks": 2, "protocol": "embedded", "method": "ewc", "class_order_seed": 0,
               "run_seed": 0, "eval_split": "test"}  # fmt: skip
    few, many = (
        cell_of({**request, "overrides": {"fisher_samples": n}}, REGISTRY, [], ROOT / "data") for n in (8, 2048)
    )
    assert few.train_keys[1] == many.train_keys[1]
    assert few.train_keys[2] != many.train_keys[2]
