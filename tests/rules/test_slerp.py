"""SLERP against angles in the plane, and against the average."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given

from bench.method.carried import nbytes
from bench.method.recorded import merge_recorded
from bench.method.weights import Weights
from tests.helpers.toy import Models, chain, close, property_test, rule, seeds


def at(*angles: float, radius: float = 1.0) -> Weights:
    """One two-dimensional tensor an angle (degrees)."""
    rad = [math.radians(a) for a in angles]
    return Weights.of(
        {f"w{i}": radius * torch.tensor([math.cos(a), math.sin(a)], dtype=torch.float64) for i, a in enumerate(rad)}
    )


def test_every_tensor_is_turned_by_one_over_t_of_its_own_angle() -> None:
    theta_0 = at(0, 0).zeros()
    steps = merge_recorded(rule("slerp"), theta_0, [at(0, 10), at(90, 50), at(150, 90)])
    assert close(steps[0], at(0, 10), 1e-15)
    assert close(steps[1], at(45, 30), 1e-14)
    assert close(steps[2], at(45 + (150 - 45) / 3, 30 + (90 - 30) / 3), 1e-14)


def test_lengths_go_over_as_the_formula_has_it_and_the_origin_can_be_zero() -> None:
    moved = at(17) * 3
    for origin, theta_0 in (("pretrained", moved), ("zero", moved)):
        o = theta_0 if origin == "pretrained" else theta_0.zeros()
        u, v = at(0, radius=2.0), at(60, radius=5.0)
        served = merge_recorded(rule("slerp", origin=origin), theta_0, [o + u, o + v])[-1]
        expected = (u + v) * (math.sin(math.radians(30)) / math.sin(math.radians(60)))
        assert close(served, o + expected, 1e-13)


@property_test
@given(seeds)
def test_equal_models_stay_and_nearly_parallel_ones_are_averaged(seed: int) -> None:
    models = Models.draw(seed)
    same = Models(models.theta_0, [models.thetas[0]] * 4, models.fishers)
    assert all(close(served, models.thetas[0]) for served in chain(rule("slerp"), same))
    near = Models(models.theta_0, [models.theta_0 + (t - models.theta_0) * 1e-3 for t in models.thetas], models.fishers)
    average = chain(rule("average"), near)
    assert all(close(a, b, 1e-15) for a, b in zip(chain(rule("slerp", origin="zero"), near), average, strict=True))
    assert not close(chain(rule("slerp"), near)[-1], average[-1], 1e-6)


def test_what_did_not_move_or_turned_round_is_averaged() -> None:
    theta_0 = at(0, 0, 30).zeros()
    still = at(0, 80, 30).with_tensors({"w0": torch.zeros(2)})
    back = at(40, 80, 210).with_tensors({"w1": torch.zeros(2)})
    served = merge_recorded(rule("slerp"), theta_0, [still, back])[-1]
    assert close(served, (still + back) / 2, 1e-15)


def test_nothing_is_carried_and_the_angle_is_told() -> None:
    told: list[dict[str, float | None]] = []
    slerp = rule("slerp")
    merge_recorded(slerp, at(0, 0).zeros(), [at(0, 0), at(90, 30)], scalars=told)
    assert told[1]["angle"] == pytest.approx(60)
    assert nbytes(slerp) == 0
