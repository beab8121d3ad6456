"""From records on disk to rows, tables, contrasts, the figure and the comparison with published numbers."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from bench.common.csv_text import csv_text
from bench.common.errors import UserError
from bench.config.files import read_yaml
from bench.records.record import Damaged, Standing, check, counts_sha256, read_records
from bench.report import columns, figures, tables
from bench.report import rows as frame
from bench.report.build import ReportConfig, build_report, write_report
from tests.helpers import fake_records as fake

ROOT = Path(__file__).parents[2]
EMBEDDED = ROOT / "reports" / "embedded.yaml"


def rows_of(records: list[dict[str, Any]]) -> list[frame.Row]:
    return frame.labelled(frame.detailed_rows(records))


# --- records ---------------------------------------------------------------------------------------------------------


def test_columns_are_the_contract() -> None:
    assert ",".join(columns.CONTRACT) == fake.CONTRACT
    assert columns.RESULTS[: len(columns.CONTRACT)] == columns.CONTRACT  # others may only follow
    assert all(tuple(row) == columns.RESULTS for row in frame.rows(fake.grid(1)))


DAMAGE: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "count edited": (lambda r: r["counts"][-1][0].__setitem__(0, r["counts"][-1][0][0] + 1), "edited by hand"),
    "task-aware edited": (lambda r: r["counts_taskaware"][-1][0].__setitem__(0, 1), "edited by hand"),
    "other format": (lambda r: r.update(format=2), "record format 2"),
    "copied folder": (lambda r: r.update(id="another"), "not the name of its folder"),
    "unknown status": (lambda r: r.update(status="ok"), "unknown status 'ok'"),
    "coordinate lost": (lambda r: r["coordinates"].pop("start"), "incomplete coordinates"),
    "seed as text": (lambda r: r["coordinates"].update(run_seed="0"), "incomplete coordinates"),
    "no method": (lambda r: r.pop("method"), "method or totals"),
    "time as text": (lambda r: r["totals"].update(merge_s="fast"), "totals merge_s is not a number"),
    "before impossible": (lambda r: r["before_merge"].__setitem__(1, [9, 5]), "before_merge, task 1: 9 correct of 5"),
    "before not a list": (lambda r: r.update(before_merge=7), "not iterable"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_record_that_cannot_be_trusted_is_a_row_without_numbers(name: str, tmp_path: Path) -> None:
    change, reason = DAMAGE[name]
    value = fake.record()
    folder = value["id"]
    change(value)
    (tmp_path / "runs" / folder).mkdir(parents=True)
    (tmp_path / "runs" / folder / "cell.json").write_text(json.dumps(value))
    (record,) = read_records(tmp_path)
    assert record["status"] == "damaged"
    assert reason in record["reason"]
    (row,) = frame.rows([record])
    assert row["status"] == "damaged"
    values = columns.RESULTS[columns.RESULTS.index("a_last") : columns.RESULTS.index("digest") + 1]
    assert all(row[name] is None for name in values)


@pytest.mark.parametrize(
    ("counts", "reason"),
    [
        ([[[3, 2]]] * 5, "3 correct of 2"),
        (fake.flat(500, 4), "counts do not reach the last task"),
        ([*fake.flat(500, 4), None], "counts do not reach the last task"),
        ([[[0.5, 1]]], "not a pair of integers"),
        ({}, "not a list of rows"),
    ],
)
def test_impossible_counts_with_a_matching_checksum_are_damage(counts: Any, reason: str) -> None:
    value = fake.record() | {"counts": counts}
    value["counts_sha256"] = counts_sha256(value)
    with pytest.raises(Damaged, match=reason):
        check(value, value["id"])


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b"\xff\xfe\x00", b'{"format": 1', b"[" * 100_000])
def test_half_written_and_foreign_files_are_damaged_rows(text: bytes, tmp_path: Path) -> None:
    (tmp_path / "runs" / "cell").mkdir(parents=True)
    (tmp_path / "runs" / "cell" / "cell.json").write_bytes(text)
    (record,) = read_records(tmp_path)
    assert (record["id"], record["status"]) == ("cell", "damaged")
    assert [row["status"] for row in frame.rows([record])] == ["damaged"]


def test_unfinished_cells_are_no_records(tmp_path: Path) -> None:
    fake.write(tmp_path, [fake.record()])
    (tmp_path / "runs" / "unfinished").mkdir()
    (tmp_path / "runs" / "unfinished" / "progress.json").write_text("{}")
    assert len(read_records(tmp_path)) == 1
    assert read_records(tmp_path / "nowhere") == []


def test_a_record_without_a_checksum_is_read(tmp_path: Path) -> None:
    value = fake.record()
    del value["counts_sha256"]
    fake.write(tmp_path, [value])
    assert read_records(tmp_path)[0]["status"] == "done"


def test_rows_are_sorted_by_number_not_by_text() -> None:
    records = [fake.record(n_tasks=t, seed=s) for t in (20, 5) for s in (10, 9)]
    assert [(row["n_tasks"], row["run_seed"]) for row in frame.rows(records)] == [(5, 9), (5, 10), (20, 9), (20, 10)]


def test_status_and_split_of_rows() -> None:
    done, failed = fake.record(), fake.record(seed=1, status="failed")
    validation = fake.record(seed=2, eval_split="val")
    rows = frame.rows(
        [done, failed, validation], standings=dict.fromkeys((done["id"], failed["id"]), Standing("stale"))
    )
    assert [row["status"] for row in rows] == ["stale", "failed"]
    assert rows[0]["a_last"] is not None
    assert rows[1]["a_last"] is None
    assert [row["run_seed"] for row in frame.rows([done, failed, validation], eval_split="val")] == [2]


def test_csv_keeps_every_digit() -> None:
    rows = frame.rows(fake.grid(2))
    text = csv_text(rows, columns.RESULTS)
    assert text.splitlines()[0].startswith(fake.CONTRACT)
    read = list(csv.DictReader(io.StringIO(text)))
    assert [row["a_last"] for row in rows] == [float(row["a_last"]) for row in read]
    assert {row["avg_acc"] for row in read if row["method"] == "joint"} == {""}


# --- labels ----------------------------------------------------------------------------------------------------------


def test_labels_are_the_shortest_unique_name() -> None:
    records = [fake.record(m) for m in ("average", "average@merged", "ewc", "trm", "joint")]
    ambiguous = fake.record("average", 1)
    ambiguous["coordinates"] |= {"start": "previous", "variant": "plain+average@previous"}
    labels = {row["variant"]: row["label"] for row in rows_of([*records, ambiguous])}
    assert labels == {
        "plain+average@pretrained": "average@pretrained",
        "plain+average@previous": "average@previous",
        "plain+average@merged": "average@merged",
        "plain+ewc@previous": "ewc",
        "plain+trm@merged": "trm†",
        "plain+joint@pretrained": "joint°",
    }


def test_same_start_other_option_is_labelled_by_its_variant() -> None:
    one, other = fake.record("ties", 0), fake.record("ties", 1)
    other["coordinates"]["variant"] = "plain+ties@merged:density=0.1"
    assert {row["label"] for row in rows_of([one, other])} == {"ties@merged", "ties@merged:density=0.1"}


def test_a_damaged_record_does_not_lose_its_dagger(tmp_path: Path) -> None:
    broken = fake.record("trm", 0) | {"method": "gone"}
    fake.write(tmp_path, [broken, fake.record("trm", 1)])
    rows = rows_of(read_records(tmp_path))
    assert [(row["status"], row["label"]) for row in rows] == [("damaged", "trm†"), ("done", "trm†")]


@pytest.mark.parametrize("selector", ["average@merged", "plain+average@merged"])
def test_selectors_follow_the_method_grammar(selector: str) -> None:
    chosen = [row["variant"] for row in rows_of(fake.grid(1)) if frame.matches(selector, row)]
    assert chosen == ["plain+average@merged"]


# --- tables ----------------------------------------------------------------------------------------------------------


def block(records: list[dict[str, Any]], order: tuple[str, ...] = ()) -> tables.Block:
    (only,) = tables.blocks(rows_of(records), order)
    return only


def test_mean_and_sample_standard_deviation_by_hand() -> None:
    three = block([fake.record("pm", s, n_tasks=2, counts=fake.flat(a)) for s, a in enumerate((500, 520, 540))])
    line = three.lines[0]
    assert line["n"] == 3
    assert line["a_last"] == pytest.approx((52.0, 2.0))
    assert line["seconds"] == pytest.approx((11.5, 1.0))
    assert tables.section(three, ["a_last"], []).column("A_last") == ["52.0 ± 2.0"]


def test_one_repeat_prints_no_deviation() -> None:
    one = block([fake.record("pm", 0, n_tasks=2, counts=fake.flat(512))])
    shown = tables.section(one, ["a_last", "carried_bytes"], [])
    assert (shown.column("A_last"), shown.column("Carried")) == (["51.2"], ["1.2 MB"])


def test_rounding_leaves_no_negative_zero() -> None:
    counts = [[[500, 1000]], [[500, 1000], [500, 1000]]]
    before = [[500, 1000], [4999, 10_000]]
    one = block([fake.record(n_tasks=2, counts=counts, before_merge=before)])
    assert tables.section(one, ["merge_drop"], []).column("Merge drop") == ["0.0"]


def test_failed_and_damaged_cells_stay_visible_and_out_of_the_mean(tmp_path: Path) -> None:
    bad = fake.record("pm", 3, n_tasks=2, counts=fake.flat(999)) | {"counts": fake.flat(100)}
    failed = [fake.record("pm", s, n_tasks=2, status="failed") for s in (1, 2)]
    fake.write(tmp_path, [fake.record("pm", 0, n_tasks=2, counts=fake.flat(500)), *failed, bad])
    report = build_report(tmp_path)
    line = report.blocks[0].lines[0]
    assert (line["n"], line["cells"], line["a_last"]) == (1, 4, (50.0, None))
    assert "edited by hand" in report.markdown()
    for text in (report.markdown(), report.latex(), rendered(report)):
        assert "failed 2/4, damaged 1/4" in text
    (read,) = csv.DictReader(io.StringIO(tables.table_csv(report.blocks)))
    assert (read["n"], read["failed"], read["damaged"], read["a_last_sd"]) == ("1", "2", "1", "")


def test_what_went_wrong_is_shown_on_the_narrowest_terminal(tmp_path: Path) -> None:
    records = [*fake.grid(2, methods=("pm", "ewc")), fake.record("pm", 9, status="failed")]
    report = build_report(fake.write(tmp_path, records), EMBEDDED)
    for width in (80, 60):
        text = rendered(report, width)
        assert "failed 1/3" in text
        assert "Not shown, the terminal is too narrow:" in text
        assert "A_last" in text


def test_a_method_that_only_failed_has_a_row() -> None:
    lines = block([fake.record("ewc"), fake.record("pm", status="failed")]).lines
    assert [(line["label"], line["n"], line["a_last"]) for line in lines][1] == ("pm", 0, (None, None))


def test_order_is_the_reports_then_the_best_last_accuracy() -> None:
    records = fake.grid(3)
    by_accuracy = [line["label"] for line in block(records).lines]
    assert by_accuracy[0] == "joint°"
    assert by_accuracy[-1] == "finetune"
    chosen = [line["label"] for line in block(records, ("trm", "average@merged")).lines]
    assert chosen[:3] == ["trm†", "average@merged", "joint°"]
    assert sorted(chosen) == sorted(by_accuracy)


def test_splits_task_counts_and_protocols_are_never_mixed() -> None:
    records = [fake.record(), fake.record(eval_split="val"), fake.record(n_tasks=10), fake.record(protocol="pm")]
    titles = [only.title for only in tables.blocks(rows_of(records))]
    assert len(set(titles)) == 4
    assert [title for title in titles if "val" in title] == ["glyphs, T = 5, protocol embedded, val split"]


def test_the_frozen_backbone_is_found_by_what_it_trains() -> None:
    renamed = fake.record("anything")
    renamed["method"] |= {"status": "baseline", "trainer": {"key": "x", "adapt": False}}
    assert block([renamed]).notes[0].startswith("Frozen backbone (anything): forgetting ")
    assert "No frozen backbone" in block([fake.record("finetune")]).notes[0]


def test_nothing_is_bold_and_the_name_of_the_mean_is_whole(tmp_path: Path) -> None:
    report = build_report(fake.write(tmp_path, fake.grid(2)))
    text = report.markdown() + report.latex()
    assert "Average incremental accuracy" in text
    assert r"Average\\incremental\\accuracy" in text
    assert "**" not in text
    assert "textbf" not in text
    assert "average accuracy" not in text.lower()


def rendered(report: Any, width: int = 250) -> str:
    console = Console(width=width, file=io.StringIO())
    console.print(report.terminal())
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_contrasts_too_few_to_be_tested_do_not_fill_the_terminal(tmp_path: Path) -> None:
    few = rendered(build_report(fake.write(tmp_path / "few", fake.grid(3)), EMBEDDED))
    assert "tested from 5 repeats on" in few
    assert "Detectable" not in few
    assert "Detectable" in rendered(build_report(fake.write(tmp_path / "many", fake.grid(5)), EMBEDDED))


def test_reconstructions_and_oracles_are_marked_in_every_format(tmp_path: Path) -> None:
    report = build_report(fake.write(tmp_path, fake.grid(5)), EMBEDDED)
    texts = {
        "markdown": report.markdown(),
        "csv": "\n".join(",".join(row[k] for k in ("label", "footnote")) for row in csv_rows(report)),
        "contrasts": report.contrasts.document().markdown(),
        "contrasts csv": report.contrasts.csv(),
        "terminal": rendered(report),
        "latex": report.latex()
        .replace(r"\textsuperscript{\textdagger}", "†")
        .replace(r"\textsuperscript{$\circ$}", "°"),
        "figure": figure_text(report),
    }
    for name, text in texts.items():
        # Inside a variant (plain+trm@merged) it is the rule's key, not the method's name.
        for key, sign in (("trm", "†"), ("joint", "°")):
            bare = re.findall(rf"(?<![\w+]){key}(?!{sign})\b.{{0,9}}", text)
            assert not bare, f"{name}: {bare}"
            assert f"{key}{sign}" in text, name
        assert "our reconstruction from the abstract; not the authors' method" in text, name
        assert "oracle: sees more than a continual learner may" in text, name


def csv_rows(report: Any) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(tables.table_csv(report.blocks))))


def figure_text(report: Any) -> str:
    from matplotlib.text import Text

    drawn = figures.accuracy_over_tasks(report.rows, [line["label"] for line in report.blocks[0].lines])
    return "\n".join(" ".join(text.get_text().split()) for text in drawn.findobj(Text))


HOSTILE = r"a_b&c%d$e#f{g}~h^i\j<k>|*`"


def test_hostile_names_do_not_break_a_format(tmp_path: Path) -> None:
    evil, good = fake.record("pm", n_tasks=2), fake.record("ewc", n_tasks=2)
    evil["coordinates"] |= {"method": HOSTILE, "variant": HOSTILE, "dataset": "glyphs"}
    report = build_report(fake.write(tmp_path, [evil, good]))
    body = [line for line in report.markdown().splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in body}) == 1
    tex = report.latex()
    assert r"a\_b\&c\%d\$e\#f\{g\}\textasciitilde{}h\textasciicircum{}i\textbackslash{}j$<$k$>$" in tex
    assert tex.count(r"\toprule") == tex.count(r"\bottomrule") == tex.count(r"\begin{table*}") == 1
    assert len({line.count(" & ") for line in tex.splitlines() if line.endswith(r" \\")}) == 1
    assert HOSTILE in rendered(report)


def _latex_is_here() -> bool:
    return (
        shutil.which("pdflatex") is not None
        and not subprocess.run(["kpsewhich", "booktabs.sty"], capture_output=True, check=False).returncode
    )


@pytest.mark.skipif(not _latex_is_here(), reason="needs pdflatex and booktabs")
def test_latex_compiles(tmp_path: Path) -> None:
    evil = fake.record("pm", 9)
    evil["coordinates"] |= {"method": HOSTILE, "variant": HOSTILE}
    report = build_report(fake.write(tmp_path, [*fake.grid(2), evil]), EMBEDDED)
    document = r"\documentclass{article}\usepackage{booktabs,graphicx}\begin{document}" + report.latex()
    (tmp_path / "a.tex").write_text(document + r"\end{document}")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-draftmode", "a.tex"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace", check=False)
    assert run.returncode == 0, run.stdout[-2000:]
    assert "Overfull \\hbox" not in run.stdout


# --- report files ----------------------------------------------------------------------------------------------------


def test_the_embedded_report_is_valid_and_says_what_it_is_not() -> None:
    config = read_yaml(EMBEDDED, ReportConfig)
    assert "built so that adaptation matters; no evidence for merging in general" in config.caption
    declared = {(b, t) for family in config.families for c in family.contrasts for b in c.better for t in c.than}
    assert {
        ("pm", "lora_m"),
        ("pm", "average@merged"),
        ("joint", "pm"),
        ("pm", "linear_probe"),
        ("pm", "finetune"),
    } <= declared


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("colums: [a_last]", "unknown key 'colums'"),
        ("columns: [a_lst]", "columns: .*did you mean 'a_last'"),
        ("columns: [a_last, forgetting]", "columns: .*only beside learn_acc"),
        ("families: [{name: f, contrasts: [{better: [pm]}]}]", "families.0.contrasts.0.than: missing"),
        ("families: [{name: f, contrasts: []}]", "families.0.contrasts"),
        ("methods: pm", "methods: "),
        ("- a", "expected a mapping"),
    ],
)
def test_mistakes_in_a_report_file_name_file_and_key(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=f"mine.yaml: .*{words}") as caught:
        build_report(tmp_path, path)
    assert "\n" not in str(caught.value)


def test_no_records_is_a_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no records; run some cells"):
        build_report(tmp_path)
    fake.write(tmp_path, [fake.record(protocol="pm")])
    with pytest.raises(UserError, match=r"no records under protocol 'embedded' \(.*embedded.yaml: protocol\)"):
        build_report(tmp_path, EMBEDDED)


def test_cells_of_other_protocols_are_counted_not_shown(tmp_path: Path) -> None:
    report = build_report(fake.write(tmp_path, [fake.record(), fake.record(protocol="magmax")]), EMBEDDED)
    assert len(report.blocks) == 1
    assert report.notes == ["1 cells under other protocols are not in this report."]


def test_write_report_writes_the_same_files_twice(tmp_path: Path) -> None:
    fake.write(tmp_path / "results", [*fake.grid(2, ("glyphs", "digits")), fake.record("pm", 9, status="failed")])
    first, second = (write_report(tmp_path / "results", tmp_path / out, EMBEDDED) for out in ("a", "b"))
    names = ["table.md", "table.tex", "table.csv", "contrasts.md", "contrasts.csv", "index.html"]
    names += [f"{name}.{kind}" for name in ("accuracy_over_tasks", "ladder", "losses", "stability", "costs")
              for kind in ("png", "pdf")]  # fmt: skip
    assert [path.name for path in first] == names
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == sorted(names)
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes(), one.name
    assert first[6].read_bytes().startswith(b"\x89PNG")
    assert first[7].read_bytes().startswith(b"%PDF")


def test_a_report_of_failures_only_has_no_figure(tmp_path: Path) -> None:
    fake.write(tmp_path, [fake.record(status="failed")])
    assert [path.name for path in write_report(tmp_path, tmp_path / "out")] == [
        "table.md", "table.tex", "table.csv", "index.html"
    ]  # fmt: skip


@given(st.lists(st.floats(0, 1), min_size=1, max_size=25), st.floats(0.001, 0.04))
def test_figure_labels_keep_their_distance_and_stay_in_the_panel(places: list[float], gap: float) -> None:
    moved = figures.drawing.spread(sorted(places), gap)
    assert all(b - a >= gap - 1e-9 for a, b in pairwise(moved))
    assert moved[0] >= 0
    assert moved[-1] <= 1 + 1e-9
    if all(b - a >= gap for a, b in pairwise(sorted(places))):
        assert moved == pytest.approx(sorted(places), abs=1e-6)


# --- verify ----------------------------------------------------------------------------------------------------------
