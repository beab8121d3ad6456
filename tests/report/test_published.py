"""Published numbers: their files, and the verdicts on them."""

from __future__ import annotations

import csv
import io
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from bench.common.errors import UserError
from bench.common.paths import DATASETS
from bench.registry import Registry
from bench.report.papers.published import PublishedFamily, load_families, load_family
from bench.report.papers.verdicts import judge

NUMBER: dict[str, Any] = {
    "dataset": "glyphs", "n_tasks": 5, "method": "pm", "metric": "a_last", "value": 75.0, "source": ["page"],
    "confidence": "page",
}  # fmt: skip
FAMILY: dict[str, Any] = {
    "title": "A family",
    "about": "Somewhere.",
    "reproduction": {"protocol": "embedded", "class_order_seed": 3},
    "methods": {"pm": {"ours": "pm"}, "trm": {"ours": "trm"}, "other": {}, "half": {"ours": "coma", "why_not": "half"}},
    "sources": {"page": "a page"},
    "references": [NUMBER],
}


def family(tmp_path: Path, **changes: Any) -> PublishedFamily:
    path = tmp_path / "some.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in {**FAMILY, **changes}.items() if v is not None}))
    return load_family(path)


def rows(*values: float, **changes: Any) -> list[dict[str, Any]]:
    place = {
        "dataset": "glyphs", "n_tasks": 5, "protocol": "embedded", "eval_split": "test", "class_order_seed": 3,
        "variant": "perturb+pm_alpha@merged", "status": "done",
    }  # fmt: skip
    return [place | {"a_last": value, "run_seed": seed} | changes for seed, value in enumerate(values)]


# --- the shipped files -----------------------------------------------------------------------------------------------


def test_shipped_families(registry: Registry) -> None:
    families = load_families()
    assert {key: len(f.references) for key, f in families.items()} == {
        "inflora": 8, "loda": 5, "magmax": 16, "pm": 55, "sdlora": 102, "splitlora": 23, "vptnsp2": 59,
        "vptnsp2_clip": 16,
    }  # fmt: skip
    verdicts = judge(families.values(), [], registry)  # resolves every name of ours
    assert Counter(v.judgement for v in verdicts.all) == {"not run": 37, "not comparable": 247}
    assert {v.family.key for v in verdicts.all if v.judgement == "not run"} == {"pm"}
    here = {path.stem for path in DATASETS.glob("*.yaml")}
    assert {f.match_dataset(n.dataset).ours for f in families.values() for n in f.references} <= here


def test_a_few_numbers_as_their_sources_have_them() -> None:
    families = load_families()
    found = {
        (key, n.dataset, n.n_tasks, n.name, n.metric): (n.value, n.std, n.confidence)
        for key, f in families.items()
        for n in f.references
    }
    assert found["pm", "imagenet_r", 5, "pm", "a_last"] == (81.47, None, "page")
    assert found["pm", "imagenet_r", 10, "pm/alpha_global_ablation", "a_last"] == (78.48, None, "note")
    assert found["sdlora", "imagenet_r", 20, "sd_lora", "avg_acc"] == (80.22, 0.72, "table")
    assert found["magmax", "cifar100", 20, "trm", "a_last"] == (78.6, None, "page")
    assert found["magmax", "cars", None, "trm", "forgetting"] == (2.9, None, "page")


def test_what_reconstructs_is_never_judged(registry: Registry) -> None:
    verdicts = judge(load_families().values(), [], registry)
    mine = [v for v in verdicts.all if v.number.method == "trm"]
    assert len(mine) == 9
    assert all(v.judgement == "not comparable" and "reconstruction" in v.why for v in mine)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"references": [NUMBER, {**NUMBER, "value": 1.0}]}, "references.1: pm on glyphs, T = 5, a_last is there"),
        ({"references": [{**NUMBER, "source": ["pgae"]}]}, "references.0.source: unknown source 'pgae'"),
        ({"references": [{**NUMBER, "method": "mp"}]}, "references.0.method: unknown method 'mp'; did you mean 'pm'?"),
        ({"references": [{**NUMBER, "value": 750}]}, "references.0.value"),
        ({"references": [{**NUMBER, "metrik": 1}]}, "unknown key 'references.0.metrik'"),
        ({"references": [{k: v for k, v in NUMBER.items() if k != "n_tasks"}]}, "references.0.n_tasks: missing"),
        ({"reproduction": None}, "reproduction: give either it or why_not"),
        ({"why_not": "because"}, "reproduction: give either it or why_not"),
    ],
)
def test_mistakes_name_the_file_and_the_key(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as error:
        family(tmp_path, **changes)
    assert "some.yaml" in str(error.value)
    assert said in str(error.value)


def test_another_variant_is_another_number(tmp_path: Path) -> None:
    methods = {**FAMILY["methods"], "pm/log": {}}
    loaded = family(tmp_path, methods=methods, references=[NUMBER, {**NUMBER, "variant": "log"}])
    assert [number.name for number in loaded.references] == ["pm", "pm/log"]


# --- verdicts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "outcome"),
    [(81.93, "consistent"), (81.94, "inconsistent"), (62.07, "consistent"), (62.06, "inconsistent")],
)
def test_interval_by_hand(tmp_path: Path, registry: Registry, value: float, outcome: str) -> None:
    """70, 72, 74: mean 72, s = 2, t = 4.30265 with 2 degrees of freedom: 72 ± 4.30265 * 2 * sqrt(1 + 1/3) = 9.93655."""
    (verdict,) = judge(
        [family(tmp_path, references=[{**NUMBER, "value": value}])], rows(70.0, 72.0, 74.0), registry
    ).all
    assert (verdict.low, verdict.high) == pytest.approx((62.06345, 81.93655), abs=1e-5)
    assert verdict.judgement == outcome
    assert verdict.values == (70.0, 72.0, 74.0)


def test_settings_that_a_paper_does_not_state_are_counted(tmp_path: Path, registry: Registry) -> None:
    told = family(tmp_path, reproduction={"protocol": "pm_repro", "class_order_seed": 0})
    (verdict,) = judge([told], rows(74.0, 75.0, 76.0, protocol="pm_repro", class_order_seed=0), registry).all
    assert (verdict.judgement, verdict.inferred, verdict.why) == ("consistent", 18, "18 settings inferred")


@pytest.mark.parametrize(
    "changes",
    [
        {"class_order_seed": 4}, {"protocol": "embedded[train.lr=0.003]"}, {"eval_split": "test_heldout"},
        {"variant": "plain+pm_alpha@merged"}, {"n_tasks": 10}, {"dataset": "digits"}, {"status": "stale"},
    ],
)  # fmt: skip
def test_other_settings_do_not_count(tmp_path: Path, registry: Registry, changes: dict[str, Any]) -> None:
    (verdict,) = judge([family(tmp_path)], rows(70.0, 72.0, 74.0, **changes), registry).all
    assert verdict.judgement == "not run"
    assert verdict.why == ("3 stale" if "status" in changes else "")


@pytest.mark.parametrize(
    ("number", "family_changes", "values", "why"),
    [
        ({}, {}, (70.0,), "one repeat gives no interval"),
        ({}, {}, (70.0, 70.0), "repeats that do not differ give no interval"),
        ({"use": False, "note": "columns in the wrong order"}, {}, (70.0, 72.0), "columns in the wrong order"),
        ({"n_tasks": None}, {}, (70.0, 72.0), "the number of tasks is not stated"),
        ({"method": "other"}, {}, (70.0, 72.0), "no such method here"),
        ({"method": "half"}, {}, (70.0, 72.0), "half"),
        ({"method": "trm"}, {}, (70.0, 72.0), "our method is a reconstruction from the abstract"),
        ({}, {"datasets": {"glyphs": {"why_not": "another split"}}}, (70.0, 72.0), "another split"),
        ({"metric": "forgetting"}, {"metrics": {"forgetting": {"why_not": "which?"}}}, (70.0, 72.0), "which?"),
        ({}, {"reproduction": None, "why_not": "another optimiser"}, (70.0, 72.0), "another optimiser"),
    ],
)
def test_not_comparable_and_why(
    tmp_path: Path,
    registry: Registry,
    number: dict[str, Any],
    family_changes: dict[str, Any],
    values: tuple[float, ...],
    why: str,
) -> None:
    told = family(tmp_path, references=[{**NUMBER, **number}], **family_changes)
    (verdict,) = judge([told], rows(*values), registry).all
    assert (verdict.judgement, verdict.why) == ("not comparable", why)


def test_the_metric_of_the_same_definition_is_compared(tmp_path: Path, registry: Registry) -> None:
    told = family(
        tmp_path,
        references=[{**NUMBER, "metric": "forgetting", "value": 5.0}],
        metrics={"forgetting": {"ours": "forgetting_max_incl"}},
    )
    ours = [row | {"forgetting": 50.0, "forgetting_max_incl": f} for row, f in zip(rows(1, 2), (4.0, 6.0), strict=True)]
    (verdict,) = judge([told], ours, registry).all
    assert (verdict.judgement, verdict.values) == ("consistent", (4.0, 6.0))


def test_unknown_names_of_ours(tmp_path: Path, registry: Registry) -> None:
    with pytest.raises(UserError, match=r"published family some: methods\.pm\.ours: unknown method 'pmm'"):
        judge([family(tmp_path, methods={"pm": {"ours": "pmm"}})], [], registry)
    with pytest.raises(UserError, match=r"metrics\.a_last\.ours"):
        judge([family(tmp_path, metrics={"a_last": {"ours": "accuracy"}})], [], registry)


def test_markdown_and_csv_say_the_same(tmp_path: Path, registry: Registry) -> None:
    told = family(tmp_path, references=[NUMBER, {**NUMBER, "n_tasks": 10}, {**NUMBER, "method": "other"}])
    verdicts = judge([told], rows(70.0, 72.0, 74.0), registry)
    text = verdicts.document().markdown()
    assert "1 consistent, 0 inconsistent, 1 not run, 1 not comparable." in text
    assert "62.1 to 81.9" in text
    assert "not comparable (no such method here)" in text
    lines = list(csv.DictReader(io.StringIO(verdicts.csv())))
    assert [line["verdict"] for line in lines] == ["consistent", "not run", "not comparable"]
    assert float(lines[0]["low"]) == pytest.approx(62.06345, abs=1e-5)
    assert (lines[0]["n"], lines[1]["mean"], lines[0]["source"]) == ("3", "", "a page")
