"""Regret against an oracle, by hand; the gain of one merge as oracles log it; nothing passed over in silence."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest
from matplotlib.lines import Line2D
from matplotlib.text import Text
from scipy import stats

from bench.config.files import read_yaml
from bench.report import rows
from bench.report.build import ReportConfig, write_report
from bench.report.figures import drawing
from bench.report.inference import regret
from tests.helpers import fake_records as fake

ROOT = Path(__file__).parents[2]
CONFIG = regret.RegretConfig(oracle="best", methods=["pm", "lora_m"])


def record(method: str, seed: int, curve: list[float], **changes: Any) -> dict[str, Any]:
    """A cell whose A_t are given, in percent."""
    counts = [[[round(10 * a), 1000]] * (t + 1) for t, a in enumerate(curve)]
    return fake.record(method, seed, n_tasks=len(curve), counts=counts, **changes)


def oracle(seed: int, curve: list[float], gains: list[float] | None = None) -> dict[str, Any]:
    logged = [{}] + [{"validation_accuracy": 0.5 + g, "validation_accuracy_average": 0.5} for g in gains or []]
    value = record("best", seed, curve, tasks=[{"t": t, "scalars": s} for t, s in enumerate(logged, 1)])
    value["method"]["status"] = "oracle"
    return value


def evaluated(records: list[dict[str, Any]], config: regret.RegretConfig = CONFIG) -> regret.Regret:
    return regret.evaluate(config, rows.labelled(rows.detailed_rows(records)))


def three() -> list[dict[str, Any]]:
    """Regrets of pm at t = 2: 1, 2, 6; at t = 3: 4, 4, 4; of lora_m: -1 everywhere."""
    best = [(90.0, 80.0, 70.0), (91.0, 81.0, 71.0), (92.0, 82.0, 72.0)]
    lost = [(0.0, 1.0, 4.0), (5.0, 2.0, 4.0), (0.0, 6.0, 4.0)]
    return [
        value
        for seed in range(3)
        for value in (
            oracle(seed, list(best[seed]), [0.01 * (seed + 1), 0.0]),
            record("pm", seed, [b - r for b, r in zip(best[seed], lost[seed], strict=True)]),
            record("lora_m", seed, [b + 1 for b in best[seed]]),
        )
    ]


def test_regret_is_paired_by_hand_and_starts_at_the_second_task() -> None:
    pm, lora_m = (line for line in evaluated(three()).lines if line.kind == "regret")
    assert pm.by_t == {2: pytest.approx([1, 2, 6]), 3: pytest.approx([4, 4, 4])}
    assert pm.overall == pytest.approx([2.5, 3, 5])
    assert lora_m.overall == pytest.approx([-1, -1, -1])
    lines = list(csv.DictReader(io.StringIO(evaluated(three()).csv())))
    second = next(line for line in lines if (line["method"], line["t"], line["kind"]) == ("pm", "2", "regret"))
    interval = stats.t.interval(0.95, 2, 3, stats.sem([1, 2, 6]))
    assert [float(second[k]) for k in ("n", "mean", "low", "high")] == pytest.approx([3, 3, *interval])


def test_markdown_prints_means_intervals_and_marks() -> None:
    text = evaluated(three()).document().markdown()
    assert "| pm" in text
    assert "+3.0 [-3.6, +9.6]" in text
    assert "+4.0 [+4.0, +4.0]" in text
    assert "best°" in text  # its own table of single merges
    assert "oracle: sees more than a continual learner may" in text


def test_the_gain_of_one_merge_is_what_the_oracle_logged() -> None:
    (line,) = [line for line in evaluated(three()).lines if line.kind == "one step"]
    assert line.label == "best°"
    assert line.by_t == {2: pytest.approx([1, 2, 3]), 3: pytest.approx([0, 0, 0])}


def test_only_repeats_that_both_have_are_paired() -> None:
    records = [*three(), record("pm", 7, [10.0, 10.0, 10.0])]
    assert len(evaluated(records).lines[0].overall) == 3


def test_splits_and_streams_are_never_mixed() -> None:
    records = three()
    for value in records[1::3]:  # pm alone
        value["coordinates"]["eval_split"] = "test_heldout"
    found = evaluated(records)
    assert [line.label for line in found.lines if line.kind == "regret"] == ["lora_m"]
    said = " ".join(found.notes)
    assert "pm on glyphs, T = 3, protocol embedded: not run" in said
    assert "lora_m on glyphs, T = 3, protocol embedded, test_heldout split: not run" in said
    assert "Split test_heldout: " in said
    assert "validation images were trained on" in said


def test_a_name_that_means_two_methods_is_said_not_guessed() -> None:
    records = three()
    records[1]["coordinates"] |= {"variant": "plain+pm@previous", "start": "previous"}
    assert any(note.startswith("pm on") for note in evaluated(records).notes)


def test_methods_without_a_curve_and_failures_are_no_numbers() -> None:
    joint = [fake.record("joint", s, n_tasks=3) for s in range(3)]
    failed = fake.record("lora_m", 9, n_tasks=3, status="failed")
    only_last = evaluated([*three(), *joint, failed], regret.RegretConfig(oracle="best", methods=["joint", "lora_m"]))
    line = only_last.lines[0]
    assert (line.label, list(line.by_t)) == ("joint°", [3])  # evaluated after the last task alone
    assert len(only_last.lines[1].overall) == 3


def test_records_whose_tasks_are_not_what_they_should_be_log_nothing() -> None:
    for tasks in (None, 7, [3], [{"scalars": 3}], [{}, {"scalars": {"validation_accuracy": 1.0}}]):
        value = oracle(0, [90.0, 80.0])
        value["tasks"] = tasks
        assert [line.kind for line in evaluated([value, record("pm", 0, [80.0, 70.0])]).lines] == ["regret"]


def test_the_figure_has_a_line_a_method_and_says_n(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Any] = []
    monkeypatch.setattr(drawing, "_saved", lambda figure, kind, **_: kept.append(figure) or b"")
    regret.figure(evaluated(three()))
    words = " ".join(text.get_text() for text in kept[0].findobj(Text))
    assert "n = 3 repeats" in words
    assert {"pm", "lora_m"} <= set(words.split())
    heights = [list(line.get_ydata()) for line in kept[0].axes[0].findobj(Line2D)]
    assert any(pytest.approx([3.0, 4.0]) == y for y in heights if len(y) == 2)


def test_the_report_writes_the_same_files_twice(tmp_path: Path) -> None:
    shipped = read_yaml(ROOT / "reports" / "regret.yaml", ReportConfig).regret
    assert shipped is not None
    assert shipped.oracle == "oracle_layer"
    fake.write(tmp_path, three())
    mine = tmp_path / "mine.yaml"
    mine.write_text("regret: {oracle: best, methods: [pm, lora_m, coma]}\n")
    first, second = (write_report(tmp_path, tmp_path / name, mine) for name in ("a", "b"))
    assert {f"regret.{kind}" for kind in ("md", "csv", "png", "pdf")} <= {path.name for path in first}
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert "coma on glyphs" in (tmp_path / "a" / "regret.md").read_text()


def test_without_the_oracle_there_is_no_figure() -> None:
    found = evaluated([record("pm", 0, [80.0, 70.0])])
    assert regret.figure(found) == {}
    assert sum(note.startswith(("pm on", "lora_m on")) for note in found.notes) == 2
