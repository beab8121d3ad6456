"""Outdated records: named once a reason, in no mean, test or figure; and scalars that are no numbers."""

from __future__ import annotations

import html
import io
import json
from pathlib import Path
from typing import Any

import pytest
from matplotlib.text import Text
from rich.console import Console

from bench.records.record import Standing
from bench.report import gaps, page
from bench.report.build import build_report, write_report
from bench.report.columns import METRICS
from bench.report.compare import verify
from bench.report.figures import FigureConfig, draw
from bench.report.figures.curves import alpha, onset
from bench.report.inference import contrasts, factorial, regret
from bench.report.rows import Row, detailed_rows, labelled, rows
from tests.helpers import fake_records as fake

WHY = "its protocol has changed since: train.lr was 0.01, is 0.02"
OUTDATED = Standing("outdated", WHY)


def mixed(method: str = "pm", **changes: Any) -> tuple[list[dict[str, Any]], dict[str, Standing]]:
    """Five repeats of a method at 50 and of another at 40, and five outdated ones of each at 99.9."""
    now = [
        fake.record(m, s, n_tasks=2, counts=fake.flat(a), **changes)
        for m, a in ((method, 500), ("ewc", 400))
        for s in range(5)
    ]
    old = [
        fake.record(m, s, n_tasks=2, counts=fake.flat(999), **changes) for m in (method, "ewc") for s in range(5, 10)
    ]
    return [*now, *old], {record["id"]: OUTDATED for record in old}


def rows_of(records: list[dict[str, Any]], standings: dict[str, Standing]) -> list[Row]:
    return labelled(detailed_rows(records, standings))


def test_an_outdated_row_has_no_metric_and_no_curve() -> None:
    records, standings = mixed()
    for row in (*rows(records, standings), *rows_of(records, standings)):
        old = row["run_seed"] >= 5
        assert row["status"] == ("outdated" if old else "done")
        assert all((row[key] is None) == old for key in ("a_last", "learn_acc", "forgetting"))
        assert not old or not any(row.get(key) is not None for key in (*METRICS, "curve"))


def test_tables_count_and_name_outdated_cells_and_leave_them_out_of_the_mean(tmp_path: Path) -> None:
    records, standings = mixed()
    files = {p.name: p for p in write_report(fake.write(tmp_path, records), tmp_path / "out", None, standings)}
    report = build_report(tmp_path, None, standings)
    for line in report.blocks[0].lines:
        assert (line["n"], line["outdated"]) == (5, 5)
        assert line["a_last"] == pytest.approx((50.0 if line["label"] == "pm" else 40.0, 0.0))
        assert line["seconds"][0] == pytest.approx(12.5)  # of the repeats 0..4 alone
    console = Console(width=200, file=io.StringIO())
    console.print(report.terminal())
    said = "5 (c5-r5, c6-r6, c7-r7, c8-r8, c9-r9) of ewc, pm: " + WHY
    whole = html.unescape(files["index.html"].read_text())
    for text in (files["table.md"].read_text(), whole, console.file.getvalue().replace("\n", " ")):  # type: ignore[attr-defined]
        assert "outdated 5/10" in text
        assert text.count(WHY) == 1
        assert said in text
    assert "20: 10 done, 10 outdated" in whole
    assert '<td class="bad">outdated 5/10</td>' in whole
    assert "<option>outdated</option>" in whole


def test_five_hundred_outdated_records_are_a_line_a_reason() -> None:
    records = [fake.record("pm", s, n_tasks=2) for s in range(500)]
    one = {record["id"]: OUTDATED for record in records}
    (line,) = gaps.incomplete(rows_of(records, one))[gaps.OUTDATED]
    assert line.endswith(f"500 (c0-r0, c1-r1, c2-r2, c3-r3, c4-r4, c5-r5 and 494 more) of pm: {WHY}")
    many = {record["id"]: Standing("outdated", f"reason {i}") for i, record in enumerate(records)}
    lines = gaps.incomplete(rows_of(records, many))[gaps.OUTDATED]
    assert len(lines) == gaps.NAMED + 1
    assert lines[-1].endswith("of pm: 494 other reasons")


def test_contrasts_and_regret_pair_no_outdated_repeat() -> None:
    records, standings = mixed()
    found = rows_of(records, standings)
    family = contrasts.ContrastFamily(name="f", contrasts=[contrasts.Contrast(better=["pm"], than=["ewc"])])
    (result,) = contrasts.evaluate([family], found).results
    assert (result.n, result.difference) == (5, pytest.approx(10.0))
    (line,) = regret.evaluate(regret.RegretConfig(oracle="pm", methods=["ewc"]), found).lines
    assert line.by_t == {2: pytest.approx([10.0] * 5)}


def test_the_heat_map_has_no_cell_of_an_outdated_record() -> None:
    def record(rule: str, seed: int, density: float, a_last: int) -> dict[str, Any]:
        value = fake.record(rule, seed, n_tasks=2, counts=fake.flat(a_last))
        value["method"] |= {"rule": {"key": rule, "density": density}}
        return value

    now, old = [record("ties", s, 0.2, 500) for s in range(3)], [record("ties", s, 0.1, 900) for s in range(3, 6)]
    (found,) = factorial.heat_maps(
        factorial.FactorialConfig(), rows_of([*now, *old], {record["id"]: OUTDATED for record in old})
    )
    ((place, reached),) = found.cells.items()
    assert place == ("ties", factorial.Column("plain", "merged"))
    assert (reached.values, reached.cells, reached.failed) == ((50.0,) * 3, 3, 0)


@pytest.mark.parametrize("name", ["accuracy_over_tasks", "losses", "stability", "costs", "ladder", "alpha", "onset"])
def test_figures_are_the_same_with_and_without_outdated_records(name: str) -> None:
    task = {"scalars": {"alpha": 0.3}, "onset": {"loss": {"1": 2.0}, "grad_norm": {"1": 1.0}}}
    records, standings = mixed(tasks=[task, task])
    for i, record in enumerate(records):
        record["tasks"] = json.loads(json.dumps(record["tasks"]))
        record["tasks"][1]["scalars"]["alpha"] = 0.3 if i < 10 else 0.9
    every = draw([FigureConfig(name=name)], rows_of(records, standings), ["pm", "ewc"])
    current = draw([FigureConfig(name=name)], rows_of(records[:10], {}), ["pm", "ewc"])
    assert not every.notes
    assert every.drawn[name]["png"] == current.drawn[name]["png"]


def test_an_outdated_cell_neither_agrees_with_a_published_one_nor_contradicts_it() -> None:
    records, standings = mixed()
    found = verify.verify(
        rows(records, standings), rows([*records[:10], fake.record("pm", 5, n_tasks=2, counts=fake.flat(500))])
    )
    assert found.ok
    assert any(line.startswith("not compared: ") and line.endswith("outdated here") for line in found.lines)


# --- scalars that are no numbers ------------------------------------------------------------------------------------


def words(figure: Any) -> str:
    return " ".join(" ".join(text.get_text().split()) for text in figure.findobj(Text))


@pytest.mark.parametrize("undefined", [None, float("nan"), float("inf"), "a word"])
def test_a_point_that_is_no_number_is_left_out_of_the_curve_with_a_note(undefined: Any) -> None:
    tasks = [{"scalars": {}}, {"scalars": {"alpha": undefined}}, {"scalars": {"alpha": 0.25}}]
    records = [
        fake.record(m, s, n_tasks=3, tasks=tasks if m == "pm" else [tasks[0], tasks[2], tasks[2]])
        for m in ("pm", "ewc")
        for s in range(2)
    ]
    drawn = alpha(rows_of(records, {}), ["pm", "ewc"])
    assert "Not a number, so without these points: pm." in words(drawn)
    lines = [list(line.get_ydata()) for line in drawn.axes[0].lines]
    assert [0.25] in lines
    assert [0.25, 0.25] in lines


def test_a_figure_whose_every_value_is_no_number_is_left_out_and_said(tmp_path: Path) -> None:
    tasks = [{"scalars": {"alpha": None}, "onset": {"loss": {"1": None}, "grad_norm": {"1": None}}}] * 2
    found = draw(
        [FigureConfig(name="alpha"), FigureConfig(name="onset")],
        rows_of([fake.record("pm", n_tasks=2, tasks=tasks)], {}),
        ["pm"],
    )
    assert found.drawn == {}
    assert [note.partition(" is left out")[0] for note in found.notes] == ["Figure alpha", "Figure onset"]


def test_an_onset_that_is_no_number_is_left_out_with_a_note() -> None:
    tasks = [{"onset": {"loss": {"1": value}, "grad_norm": {"1": 1.0}}} for value in (2.0, None, 1.0)]
    drawn = onset(rows_of([fake.record("pm", s, n_tasks=3, tasks=tasks) for s in range(2)], {}), ["pm"])
    assert "Not a number, so without these points: pm." in words(drawn)
    assert list(drawn.axes[0].lines[0].get_ydata()) == [2.0, 1.0]


def test_regret_skips_merges_that_logged_no_number() -> None:
    scalars = {"validation_accuracy": 0.9, "validation_accuracy_average": 0.8}
    tasks = [{}, {"scalars": scalars | {"validation_accuracy": float("nan")}}, {"scalars": scalars}]
    found = rows_of([fake.record("pm", s, n_tasks=3, tasks=tasks) for s in range(2)], {})
    (line,) = regret.evaluate(regret.RegretConfig(oracle="pm", methods=["ewc"]), found).lines
    assert line.by_t == {3: pytest.approx([10.0, 10.0])}


def test_the_page_reads_a_record_with_a_number_that_json_lacks(tmp_path: Path) -> None:
    record = fake.record("pm")
    record["method"]["rule"] = {"key": "pm", "limit": float("inf")}
    records = page.PageRecords()
    records.add(record)

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    data = json.loads(records.json(rows_of([record], {})), parse_constant=refuse)
    assert data["shared"][0]["rule"]["limit"] == "inf"
