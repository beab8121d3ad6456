"""Accuracy matrices of other harnesses: the counts behind them, the mark beside them, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from bench.cli import cli
from bench.common.errors import UserError
from bench.records.imported import read_import
from bench.records.record import read_record

EXAMPLES = Path(__file__).parents[2] / "examples" / "import-pilot"
WHOLE: dict[str, Any] = {
    "source": "another harness, 3 May 2026",
    "dataset": "digits",
    "protocol": "theirs",
    "method": "l2p",
    "title": "L2P",
    "totals": [200, 150],
    "runs": [
        {"class_order_seed": 1, "run_seed": 2, "accuracy": [[98.5], [90.0, 97.33]]},
        {"class_order_seed": 2, "run_seed": 2, "correct": [[190], [170, 140]]},
    ],
}


def write(path: Path, **changes: Any) -> Path:
    path.write_text(yaml.safe_dump({**WHOLE, **changes}))
    return path


def clmerge(*arguments: str, results: Path) -> Any:
    return CliRunner().invoke(cli, [*arguments, "--results", str(results)])


def test_counts_are_those_behind_the_percentages(tmp_path: Path) -> None:
    first, second = read_import(write(tmp_path / "l2p.yaml"))
    assert first["counts"] == [[[197, 200]], [[180, 200], [146, 150]]]
    assert second["counts"] == [[[190, 200]], [[170, 200], [140, 150]]]


def test_rows_that_are_tasks_are_turned(tmp_path: Path) -> None:
    expected = read_import(write(tmp_path / "steps.yaml"))[0]["counts"]
    for i, matrix in enumerate(([[98.5, 90.0], [97.33]], [[98.5, 90.0], [0, 97.33]], [[98.5, 90.0], [12, 97.33]])):
        file = write(tmp_path / f"{i}.yaml", rows="tasks", **run(accuracy=matrix))
        assert read_import(file)[0]["counts"] == expected
    zeros = write(tmp_path / "zeros.yaml", **run(accuracy=[[98.5, 0], [0, 97.33]]))  # nothing says which way it lies
    assert read_import(zeros)[0]["counts"] == [[[197, 200]], [[0, 200], [146, 150]]]


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.yaml")), ids=lambda file: file.stem)
def test_the_examples_of_pilots_layout_import_and_call_themselves_placeholders(file: Path, tmp_path: Path) -> None:
    (record,) = read_import(file)
    assert [len(row) for row in record["counts"]] == list(range(1, 11))
    assert {c[1] for row in record["counts"] for c in row} == {1000}
    assert all(c[0] for row in record["counts"] for c in row)
    assert record["imported"]["source"].startswith("PLACEHOLDER")
    assert "placeholder" in record["method"]["title"]
    turned = yaml.safe_load(file.read_text())
    del turned["rows"]
    (tmp_path / "copy.yaml").write_text(yaml.safe_dump(turned))
    with pytest.raises(UserError, match="write rows: tasks"):
        read_import(tmp_path / "copy.yaml")


def test_all_examples_are_there() -> None:
    assert {file.stem for file in EXAMPLES.glob("*.yaml")} == {"l2p", "dualprompt", "coda_prompt", "ease"}


@given(st.integers(0, 200), st.integers(0, 4))
def test_every_rounding_of_every_count_is_read_back(correct: int, decimals: int) -> None:
    from bench.records.imported import _correct

    value = round(100 * correct / 200, decimals)
    got = _correct(value, 200, "accuracy", "here")
    assert abs(got - correct) <= (1 if decimals == 0 else 0)  # whole percents of 200 images: two counts share one


@pytest.mark.run
def test_imported_rows_stand_in_the_tables_with_mark_and_footnote(tmp_path: Path) -> None:
    file = write(tmp_path / "l2p.yaml")
    done = clmerge("import", str(file), results=tmp_path / "results")
    assert done.exit_code == 0, done.output
    assert "another harness, 3 May 2026" in done.output
    for record in (tmp_path / "results").glob("runs/*/cell.json"):
        assert read_record(record)["status"] == "done"  # whole by the same checks as our own
    (tmp_path / "all.yaml").write_text("title: All\n")
    report = ["report", "--report", str(tmp_path / "all.yaml"), "--out", str(tmp_path / "out")]
    assert clmerge(*report, results=tmp_path / "results").exit_code == 0
    table = (tmp_path / "out" / "table.md").read_text()
    assert "| l2p‡" in table
    assert "‡ imported: measured by another harness" in table
    assert f"{(100 * 326 / 350 + 100 * 310 / 350) / 2:.1f}" in table  # A_last, sample-weighted
    told = json.loads(clmerge("results", "--json", results=tmp_path / "results").stdout)
    assert {row["status"] for row in told} == {"done"}  # never stale: no code of ours made them
    assert {row["train_s_alone"] for row in told} == {None}
    again = clmerge("import", str(file), results=tmp_path / "results")
    assert again.exit_code == 0
    assert len(list((tmp_path / "results").glob("runs/*/cell.json"))) == 2  # the same run twice is one record


def run(**changes: Any) -> dict[str, Any]:
    return {"runs": [{"class_order_seed": 0, "run_seed": 0, **changes}]}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"totals": [200, 151]}, r"runs.0.accuracy\[1\]\[1\]: 97.33 % of 151 test images is no whole number"),
        ({"totals": [200]}, "2 rows, but totals lists 1 tasks"),
        ({"totals": [200, 0]}, r"totals.1: .*greater than 0"),
        (run(accuracy=[[98.5], [90.0]]), "row 2 has 1 entries; with rows: steps give 2"),
        (run(accuracy=[[98.5, 90.0], [97.33]]), "row 2 has 1 entries; with rows: steps give 2"),
        ({"rows": "tasks"} | run(accuracy=[[98.5], [90.0, 97.33]]), "row 1 has 1 entries; with rows: tasks give 2"),
        (run(accuracy=[[98.5, 90.0], [0, 97.33]]), "lies the other way: .*write rows: tasks"),
        (run(correct=[[197, 180], [0, 146]]), "lies the other way: .*write rows: tasks"),
        ({"rows": "tasks"} | run(accuracy=[[98.5, 0], [90.0, 97.33]]), "lies the other way: .*write rows: steps"),
        ({"rows": "tasks"} | run(accuracy=[[98.5, 97.33], [97.33]]), r"accuracy\[0\]\[1\]: 97.33 % of 200 test images"),
        (run(accuracy=[[98.5], [90.0, 101]]), "101.0 is not between 0 and 100"),
        (run(correct=[[201], [1, 1]]), "201 is not between 0 and 200"),
        (run(), "give either accuracy"),
        (run(accuracy=[[1.0], [1.0, 2.0]], correct=[[1], [1, 1]]), "give either accuracy"),
        ({"sauce": "x"}, "unknown key 'sauce'; did you mean 'source'"),
        ({"method": 3}, "method: "),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        read_import(write(tmp_path / "l2p.yaml", **changes))


def test_one_wrong_file_and_nothing_is_written(tmp_path: Path) -> None:
    good, bad = write(tmp_path / "good.yaml"), write(tmp_path / "bad.yaml", totals=[7, 7])
    done = clmerge("import", str(good), str(bad), results=tmp_path / "results")
    assert done.exit_code == 2
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "results").exists()
