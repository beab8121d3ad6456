"""A cell crosses to another process as it was resolved: nothing is read a second time, and nothing changes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from bench.common.errors import UserError
from bench.common.paths import ROOT
from bench.config import files
from bench.config.files import load_protocol, load_suite
from bench.config.schema import ProtocolConfig, SuiteConfig
from bench.plan import grid
from bench.plan.cell import Cell
from bench.plan.grid import expand
from bench.plan.replayed import cell_from_json
from bench.registry import Registry, spelling

REGISTRY = Registry.load()


@pytest.fixture(autouse=True)
def anything_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grid, "availability", lambda *_: None)


def cells_of(suite: SuiteConfig | str) -> list[Cell]:
    return expand(load_suite(suite) if isinstance(suite, str) else suite, REGISTRY, ROOT / "data", [])[0]


def crossed(cell: Cell, registry: Registry = REGISTRY) -> Cell:
    return cell_from_json(json.loads(json.dumps(cell.as_json())), registry)


@pytest.mark.parametrize("suite", ["embedded", "rules", "factorial"])
def test_a_cell_crosses_to_another_process_as_it_is(suite: str) -> None:
    cells = cells_of(suite)
    for cell in [*cells[::7], dataclasses.replace(cells[0], keep_weights=True)]:
        again = crossed(cell)
        assert again == cell
        assert (again.id, again.train_keys) == (cell.id, cell.train_keys)
        assert again.as_json() == cell.as_json()
        assert again.keep_weights is cell.keep_weights


def test_a_worker_parses_no_spelling_and_checks_each_protocol_once(monkeypatch: pytest.MonkeyPatch) -> None:
    told = json.loads(json.dumps([cell.as_json() for cell in cells_of("embedded")]))
    distinct = {json.dumps(cell["protocol"], sort_keys=True) for cell in told}
    spelling._parsed.cache_clear()
    files._PROTOCOLS.clear()
    checked: list[object] = []
    validate = ProtocolConfig.model_validate
    monkeypatch.setattr(ProtocolConfig, "model_validate", lambda data: checked.append(data) or validate(data))
    registry = Registry.load(check_names=False)
    for cell in told:
        cell_from_json(cell, registry)
    assert len(checked) == len(distinct)
    assert spelling._parsed.cache_info().misses == 0


def test_the_planner_parses_each_spelling_once_and_checks_each_protocol_of_a_dataset_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spelling._parsed.cache_clear()
    files._PROTOCOLS.clear()
    checked: list[object] = []
    validate = ProtocolConfig.model_validate
    monkeypatch.setattr(ProtocolConfig, "model_validate", lambda data: checked.append(data) or validate(data))
    cells = cells_of("embedded")
    distinct = {json.dumps(cell.protocol.model_dump(mode="json"), sort_keys=True) for cell in cells}
    assert len(checked) <= len(distinct) + 1  # and the preset as its file has it
    assert spelling._parsed.cache_info().misses == spelling._parsed.cache_info().currsize


def test_equal_protocols_are_one_object() -> None:
    first = load_protocol("embedded", {"train.epochs": 3})
    again = load_protocol("embedded", {"train.epochs": 3})
    assert first == again
    assert files.protocol_of(first.model_dump(), "") is files.protocol_of(json.loads(again.model_dump_json()), "")


def test_a_cell_whose_plugin_has_gone_or_changed_is_refused_in_one_line() -> None:
    cell = next(cell for cell in cells_of("embedded") if cell.method.key == "pm")
    without = dataclasses.replace(REGISTRY, rules={k: v for k, v in REGISTRY.rules.items() if k != "pm_alpha"})
    with pytest.raises(UserError, match=f"cell {cell.id}: unknown rule 'pm_alpha'"):
        crossed(cell, without)
    told = cell.as_json()
    told["protocol"]["train"]["epochs"] += 1
    with pytest.raises(UserError, match="has changed since it was planned"):
        cell_from_json(told, REGISTRY)
    told = cell.as_json()
    told["method"]["trainer_options"] = {"eps": -1}
    with pytest.raises(UserError, match="eps=-1: Input should be greater than or equal to 0"):
        cell_from_json(told, REGISTRY)


def test_a_plugin_place_that_is_no_python_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "LICENSE").write_text("words")
    with pytest.raises(UserError, match=r"--plugins: .*LICENSE is no Python file"):
        Registry.load([tmp_path / "LICENSE"])
