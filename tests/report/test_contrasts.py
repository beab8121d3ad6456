"""Declared contrasts: paired differences by hand, Holm inside a family, and nothing said below five repeats."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.report import rows
from bench.report.inference import contrasts
from tests.helpers import fake_records as fake


def rows_of(records: list[dict[str, Any]]) -> list[rows.Row]:
    return rows.labelled(rows.detailed_rows(records))


def pair(first: list[int], second: list[int]) -> list[dict[str, Any]]:
    """Repeats of ``pm`` and ``lora_m`` with given A_last, in tenths of a percent."""
    return [
        fake.record(m, s, n_tasks=2, counts=fake.flat(a))
        for m, a_lasts in (("pm", first), ("lora_m", second))
        for s, a in enumerate(a_lasts)
    ]


PM_BEATS_LORA_M = contrasts.ContrastFamily(
    name="claims", contrasts=[contrasts.Contrast(better=["pm"], than=["lora_m"])]
)


def test_paired_t_by_hand() -> None:
    """Differences 1, 2, 3, 4, 5: mean 3, sd 1.5811, t = 3 / (1.5811 / sqrt 5) = 4.2426 with 4 degrees of freedom."""
    (result,) = contrasts.evaluate(
        [PM_BEATS_LORA_M], rows_of(pair([510, 530, 530, 590, 560], [500, 510, 500, 550, 510]))
    ).results
    assert (result.n, result.difference) == (5, pytest.approx(3.0))
    assert result.sd == pytest.approx(1.58113883)
    assert result.p == pytest.approx(0.01323560, abs=1e-7)
    assert (result.low, result.high) == pytest.approx((1.03675684, 4.96324316), abs=1e-6)
    assert result.verdict == "holds"


def test_only_common_repeats_are_paired() -> None:
    records = pair([500, 510, 520], [490, 500, 510])
    records[0]["coordinates"]["run_seed"] = 7
    records[4]["coordinates"]["class_order_seed"] = 7
    (result,) = contrasts.evaluate([PM_BEATS_LORA_M], rows_of(records)).results
    assert (result.n, result.difference) == (1, pytest.approx(1.0))


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_fewer_than_five_repeats_have_no_p_value_and_no_verdict(n: int) -> None:
    found = contrasts.evaluate([PM_BEATS_LORA_M], rows_of(pair([900 + 7 * i for i in range(n)], [100] * n)))
    (result,) = found.results
    assert (result.p, result.p_holm, result.verdict) == (None, None, "n < 5, not tested")
    assert (result.low is None) == (n == 1)
    assert (result.detectable is None) == (n == 1)
    assert not re.search(r"holds|reversed|< 0\.", found.document().markdown().replace("n \\< 5", ""))


def test_reversed_and_constant_differences() -> None:
    (result,) = contrasts.evaluate(
        [PM_BEATS_LORA_M], rows_of(pair([100, 101, 102, 103, 104], [905, 900, 902, 908, 900]))
    ).results
    assert result.verdict == "reversed"
    (equal,) = contrasts.evaluate(
        [PM_BEATS_LORA_M], rows_of(pair([500, 510, 520, 530, 540], [500, 510, 520, 530, 540]))
    ).results
    assert (equal.difference, equal.p, equal.low, equal.high) == (0.0, None, 0.0, 0.0)
    assert equal.verdict == "not testable (constant difference)"


def test_holm_by_hand() -> None:
    assert contrasts.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert contrasts.holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert contrasts.holm([]) == []


@settings(max_examples=8)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_lies_between_raw_and_bonferroni_and_keeps_the_order(p_values: list[float]) -> None:
    adjusted = contrasts.holm(p_values)
    for raw, holm in zip(p_values, adjusted, strict=True):
        assert raw <= holm <= min(1.0, raw * len(p_values)) + 1e-12
    assert [holm for _, holm in sorted(zip(p_values, adjusted, strict=True))] == sorted(adjusted)


def test_a_family_is_corrected_over_all_its_streams() -> None:
    records = pair([510, 530, 530, 590, 560], [500, 510, 500, 550, 510])
    twins = json.loads(json.dumps(records))
    for twin in twins:
        twin["coordinates"]["dataset"] = "digits"
    alone, both = (contrasts.evaluate([PM_BEATS_LORA_M], rows_of(r)).results for r in (records, records + twins))
    assert [r.p_holm for r in alone] == pytest.approx([0.0132356], abs=1e-6)
    assert [r.p_holm for r in both] == pytest.approx([0.0264712] * 2, abs=1e-6)


@pytest.mark.parametrize(("n", "effect"), [(5, 1.682), (10, 0.996), (20, 0.660)])
def test_smallest_detectable_difference(n: int, effect: float) -> None:
    """Effect sizes dz at 80 % power, two-sided 5 %, as published power tables of the paired t-test have them."""
    assert contrasts.smallest_detectable(2.0, n) == pytest.approx(2 * effect, abs=2e-3)


def test_what_cannot_be_answered_is_said() -> None:
    family = contrasts.ContrastFamily(
        name="f", contrasts=[contrasts.Contrast(better=["pm", "ewc"], than=["average", "lora_m", "pm"])]
    )
    records = [fake.record(m) for m in ("pm", "average", "lora_m")]
    clone = fake.record("average", 1)
    clone["coordinates"] |= {"variant": "plain+average@merged", "start": "merged"}
    found = contrasts.evaluate([family], rows_of([*records, clone]))
    assert [(r.better, r.than) for r in found.results] == [("pm", "lora_m")]
    said = " ".join(found.notes)
    assert "pm > average cannot be answered" in said
    assert "ewc > lora_m cannot be answered" in said
    assert "pm > pm" not in said
