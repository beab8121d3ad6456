"""Records of a name that has come to mean something else."""

from __future__ import annotations

from typing import Any

import pytest

from bench.common.paths import ROOT
from bench.method import NamedMethod
from bench.plan.cell import Cell
from bench.plan.grid import cell_of
from bench.plan.standing import standing, standings
from bench.registry import Registry

DATA = ROOT / "data"


def asked(method: str, registry: Registry) -> Cell:
    request = {"dataset": "digits", "n_tasks": 2, "protocol": "embedded", "method": method, "class_order_seed": 0,
               "run_seed": 0, "eval_split": "test", "overrides": {}}  # fmt: skip
    return cell_of(request, registry, [], DATA)


def record_of(cell: Cell) -> Any:
    """The parts of its finished record that say what it is."""
    return {
        "id": cell.id, "status": "done", "coordinates": cell.coordinates(), "request": cell.request, "code": cell.code(),
        "method": cell.method.describe(), "protocol": cell.protocol_told(), "files": cell.files_digest,
        "dataset": {"digest": cell.data_digest},
    }  # fmt: skip


def before(monkeypatch: pytest.MonkeyPatch, key: str) -> Registry:
    """The registry when the name stood for the rule as the fields' defaults have it."""
    registry = Registry.load()
    monkeypatch.setattr(registry.rules[key], "at_start", {})
    named = registry.methods[key]
    registry.methods[key] = NamedMethod(key, f"plain+{key}@pretrained", named.title, named.paper, "published", "")
    return registry


@pytest.mark.parametrize(
    ("key", "changed", "now_named"),
    [("fisher", "kind was empirical, is exact", "fisher_empirical"), ("regmean", "a was 0.95, is 0.1", "regmean_fb")],
)
@pytest.mark.parametrize("start", ["", "@merged", "@previous"])
def test_a_record_of_a_name_that_has_changed_its_meaning_is_another_cell_and_outdated(
    monkeypatch: pytest.MonkeyPatch, key: str, changed: str, now_named: str, start: str
) -> None:
    old = asked(key + start, before(monkeypatch, key))
    today = Registry.load()
    new = asked(key + start, today)
    assert new.id != old.id
    assert new.method.variant != old.method.variant  # published rows are compared by it
    [(cell_id, told)] = standings([record_of(old)], today, [], DATA).items()
    assert (cell_id, told.status) == (old.id, "outdated")
    assert f"rule.{changed}" in told.why
    assert standing(record_of(new), new, DATA).status == "done"
    same = asked(now_named + start, today)  # what it was is there under another name, and its numbers did not move
    assert same.method.identity() == old.method.identity()
