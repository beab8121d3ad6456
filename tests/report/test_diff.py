"""Two results folders beside each other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from bench.cli import cli
from bench.records.record import counts_sha256
from bench.report.compare.diff import compare
from tests.helpers import fake_records as fake


def records() -> list[dict[str, Any]]:
    return [
        fake.record(m, s, n_tasks=2, counts=fake.flat(500), code={"train": "t", "method": "m"})
        | {"protocol": {"key": "embedded", "train": {"lr": 0.1}}, "environment": {"torch": "2.6"}}
        for m in ("pm", "ewc")
        for s in range(2)
    ]


def ran(*words: object) -> Result:
    return CliRunner().invoke(cli, ["diff", *map(str, words)])


def changed(tmp_path: Path, change: Any) -> tuple[Path, Path]:
    """Two folders; ``change`` edits the second one's records, whose checksums are then made right again."""
    mine = records()
    change(mine)
    for value in mine:
        value["counts_sha256"] = counts_sha256(value)
    return fake.write(tmp_path / "a", records()), fake.write(tmp_path / "b", mine)


def test_a_folder_is_the_same_as_its_copy_whatever_the_ids(tmp_path: Path) -> None:
    a, b = changed(tmp_path, lambda mine: [value.update(id=f"{value['id']}-other") for value in mine])
    result = ran(a, b)
    assert (result.exit_code, result.output) == (0, "4 cells in both: 4 the same, 0 differ\n")


def test_numbers_that_differ_are_said_cell_by_cell_and_paired(tmp_path: Path) -> None:
    def change(mine: list[dict[str, Any]]) -> None:
        mine[0]["counts"] = fake.flat(510)
        mine[1]["counts"] = fake.flat(480)

    result = ran(*changed(tmp_path, change))
    assert result.exit_code == 1
    lines = result.output.splitlines()
    assert lines[0] == "4 cells in both: 2 the same, 2 differ"
    where = "glyphs, T = 2, protocol embedded: plain+pm@merged"
    assert lines[1] == f"  {where} c0-r0: A_last 50.00 in A, 51.00 in B (+1.00); counts"
    assert lines[2] == f"  {where} c1-r1: A_last 50.00 in A, 48.00 in B (-2.00); counts"
    assert lines[4] == f"  {where}: mean -0.50 over 2, -2.00 to +1.00"
    assert ran(tmp_path / "a", tmp_path / "b", "--quiet").output.splitlines() == lines[:1]


def test_other_weights_with_the_same_counts_are_a_difference(tmp_path: Path) -> None:
    result = ran(*changed(tmp_path, lambda mine: mine[2].update(digest="f" * 32)))
    assert result.exit_code == 1
    assert "(+0.00); weights differ, counts are the same" in result.output


def test_code_protocol_and_machine_are_said_and_are_no_difference_by_themselves(tmp_path: Path) -> None:
    def change(mine: list[dict[str, Any]]) -> None:
        for value in mine:
            value["environment"] = {"torch": "2.7", "gpu": "H"}
        mine[0]["code"] = {"train": "u", "method": "m"}
        mine[1]["protocol"] = {"key": "embedded", "title": "words", "train": {"lr": 0.2}}

    result = ran(*changed(tmp_path, change))
    assert result.exit_code == 0
    assert "code differs in 1 of 4 cells" in result.output
    assert "  train.lr: 0.1 in A, 0.2 in B (1 cells)" in result.output
    assert '  torch: "2.6" in A, "2.7" in B (4 cells)' in result.output
    assert '  gpu: null in A, "H" in B (4 cells)' in result.output
    assert "words" not in result.output


def test_cells_of_one_folder_only_are_counted(tmp_path: Path) -> None:
    a, b = changed(tmp_path, lambda mine: mine.pop(0))
    result = ran(a, b)
    assert result.exit_code == 0
    assert "only in A: 1 cells\n  glyphs, T = 2, protocol embedded, plain+pm@merged: 1" in result.output
    assert "only in B: 1 cells" in ran(b, a).output


def test_a_failed_or_damaged_cell_is_not_the_same_as_a_done_one(tmp_path: Path) -> None:
    a, b = changed(tmp_path, lambda mine: mine[0].update(status="failed", counts=[], digest=None))
    edited = json.loads((b / "runs" / records()[3]["id"] / "cell.json").read_text())
    edited["counts"][-1][0][0] += 1
    (b / "runs" / edited["id"] / "cell.json").write_text(json.dumps(edited))
    result = ran(a, b)
    assert result.exit_code == 1
    assert "c0-r0: done in A, failed in B" in result.output
    assert "c1-r1: done in A, damaged in B" in result.output
    assert "protocol differs" not in result.output
    assert compare(b, b).same is False
    assert [pair.same for pair in compare(b, b).pairs].count(False) == 1  # failed twice is the same, damaged twice not


def test_of_two_records_of_one_cell_the_newest_counts(tmp_path: Path) -> None:
    def change(mine: list[dict[str, Any]]) -> None:
        old = fake.record("pm", 0, n_tasks=2, counts=fake.flat(100), written="2025-01-01T00:00:00Z")
        mine[0]["written"] = "2026-01-01T00:00:00Z"
        mine.append(old | {"id": "a-older"})
        mine.append(old | {"id": "z-older"})

    found = compare(*changed(tmp_path, change))
    assert found.same
    assert found.notes == ["B: 2 records have the coordinates of another; the newest one was compared"]


def test_json_has_every_cell(tmp_path: Path) -> None:
    result = ran(*changed(tmp_path, lambda mine: mine[0].update(counts=fake.flat(510))), "--json")
    told = json.loads(result.output)
    assert (result.exit_code, told["same"], len(told["cells"])) == (1, False, 4)
    (cell,) = [cell for cell in told["cells"] if not cell["same"]]
    assert cell["difference"] == pytest.approx(1.0)
    assert cell["a_last"] == [50.0, 51.0]
    assert (cell["same_counts"], cell["same_weights"], cell["same_code"], cell["variant"]) == (
        False,
        True,
        True,
        "plain+pm@merged",
    )


def test_nothing_in_common_is_not_the_same(tmp_path: Path) -> None:
    a = fake.write(tmp_path / "a", [fake.record("pm")])
    b = fake.write(tmp_path / "b", [fake.record("pm", eval_split="val")])
    result = ran(a, b)
    assert result.exit_code == 1
    assert "nothing could be compared" in result.output


def test_a_folder_without_records_is_a_users_mistake(tmp_path: Path) -> None:
    result = ran(fake.write(tmp_path / "a", [fake.record("pm")]), tmp_path / "none")
    assert result.exit_code == 2
    assert result.output.startswith(f"clmerge: {tmp_path / 'none' / 'runs'}: no records")
    assert result.output.count("\n") == 1
