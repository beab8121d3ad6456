"""The one list of columns: what it promises, where a new one appears, and that files without it stay readable."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from bench.cli import cli
from bench.common.csv_text import csv_text
from bench.common.paths import ROOT
from bench.report import columns, tables
from bench.report.columns import BY_KEY, COLUMNS, CONTRACT, RESULTS, SUMMARISED, Column, check_columns, mean_sd
from bench.report.compare import verify
from bench.report.rows import detailed_rows, labelled
from tests.helpers import fake_records as fake

PUBLISHED = sorted((ROOT / "results" / "published").glob("*.csv"))
EXTRA = Column("extra", "Extra", lambda record: 1.0, shown=frozenset({"results"}))


def test_keys_and_headings_are_unique() -> None:
    assert len(BY_KEY) == len(COLUMNS)
    headings = [column.heading for column in COLUMNS]
    assert len(set(headings)) == len(headings)
    assert set(CONTRACT) <= set(RESULTS)


def test_a_column_more_follows_the_contract(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "COLUMNS", (EXTRA, *COLUMNS))
    after = [column.key for column in columns.shown_on("results")]
    assert tuple(after[: len(CONTRACT)]) == CONTRACT
    assert set(after) == {*RESULTS, "extra"}


@pytest.mark.parametrize(
    "path", [path for path in PUBLISHED if path.read_text().find("class_order_seed") > 0], ids=lambda p: p.stem
)
def test_published_files_are_readable_after_a_column_was_added(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "RESULTS", (*RESULTS, "extra"))
    rows = verify.read_published(path)
    assert rows
    assert {row["extra"] for row in rows} == {None}
    assert verify.verify(rows, rows, tolerance=0.0).ok


def test_a_published_file_without_a_cost_is_read_with_it_empty(tmp_path: Path) -> None:
    value = {
        **dict.fromkeys(CONTRACT),
        "dataset": "d",
        "n_tasks": 2,
        "class_order_seed": 0,
        "run_seed": 0,
        "a_last": 50.0,
    }
    (tmp_path / "old.csv").write_text(csv_text([value], [name for name in CONTRACT if name != "peak_mb"]))
    (row,) = verify.read_published(tmp_path / "old.csv")
    assert (row["a_last"], row["peak_mb"]) == (50.0, None)


def test_every_metric_and_cost_can_be_asked_for_and_is_in_the_csv() -> None:
    keys = [column.key for column in SUMMARISED]
    check_columns(keys)
    (block,) = tables.blocks(labelled(detailed_rows([fake.record()])))
    section = tables.section(block, keys, [])
    assert [head for (head,) in section.heads[3:]] == [column.heading for column in SUMMARISED]
    (line,) = csv.DictReader(io.StringIO(tables.table_csv([block])))
    assert {f"{key}_mean" for key in keys} <= set(line)
    assert section.column("Optimiser steps") == ["375"]
    assert line["opt_steps_mean"] == "375.0"


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["a_lst"], "unknown column 'a_lst'; did you mean 'a_last'"),
        (["dataset"], "unknown column 'dataset'"),
        (["forgetting_taskmean"], "forgetting_taskmean is shown only beside learn_acc"),
    ],
)
def test_columns_that_a_table_cannot_have(names: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check_columns(names)


def test_values_are_printed_by_their_unit() -> None:
    assert BY_KEY["a_last"].text((51.26, 0.84)) == "51.3 ± 0.8"
    assert BY_KEY["merge_drop"].text((-0.01, None)) == "0.0"
    assert BY_KEY["carried_bytes"].text((1_200_000, 5.0)) == "1.2 MB"
    assert BY_KEY["opt_steps"].text((375.0, 0.0)) == "375 ± 0"
    assert BY_KEY["forgetting"].text((None, None)) == "-"
    assert mean_sd([1.0, None]) == (None, None)
    assert mean_sd([1.0, 3.0]) == pytest.approx((2.0, 2**0.5))


def test_the_command_lists_them() -> None:
    done = CliRunner().invoke(cli, ["list", "columns", "--json"])
    assert done.exit_code == 0, done.output
    assert [row["key"] for row in json.loads(done.output)] == [column.key for column in COLUMNS]
    assert all(column.about or column.kind in ("coordinate", "state") for column in COLUMNS)


def test_the_documentation_names_columns_that_are_there_by_their_names() -> None:
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \(?`([a-z_]+)`\)? \| ([^|]+) \|", text, re.MULTILINE)
    assert len(rows) > 8
    for key, name in rows:
        assert key in BY_KEY
        if key in ("a_last", "avg_acc", "forgetting", "bwt"):
            assert BY_KEY[key].heading.lower() == name.lower()
    documented = {key for key, _ in rows}
    contract = {column.key for column in COLUMNS if column.kind == "metric" and column.key in CONTRACT}
    assert {key for key in contract if not key.endswith("_taskmean")} <= documented
