"""Tables of papers: their cells, what stands in them, every format, and the command.

The files of goldens/report are written anew by ``CLMERGE_WRITE_GOLDENS=1 pytest tests/report/test_paper.py``; look at what
changed before it is committed.
"""

from __future__ import annotations

import csv
import io
import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

import bench.execute.execute
from bench.cli import cli
from bench.common.errors import UserError
from bench.common.paths import ROOT
from bench.plan.cell import Cell
from bench.plan.grid import expand
from bench.records.record import Standing, read_records
from bench.registry import Registry
from bench.report.papers import formats
from bench.report.papers.cells import MeasuredTable, measure
from bench.report.papers.frame import lines, notes, sections
from bench.report.papers.layout import PAPER_TABLES, PaperTable, load_table
from bench.report.papers.published import CONFIDENCE, PublishedFamily, load_families, load_family
from bench.report.rows import detailed_rows
from tests.helpers import fake_records as fake

GOLDENS = Path(__file__).parent.parent / "goldens" / "report"
SHIPPED = sorted(path.stem for path in PAPER_TABLES.glob("*.yaml"))
TABLE: dict[str, Any] = {
    "title": "Two & three_methods",
    "caption": "A small table.",
    "protocol": "embedded",
    "columns": [{"dataset": "glyphs", "tasks": [2]}, {"dataset": "digits", "tasks": [2]}],
    "methods": ["linear_probe", "finetune", "pm", {"method": "average@merged", "title": "1/t"}, "trm"],
    "metrics": ["a_last", "learn_acc", "forgetting"],
    "repeats": "3-5",
    "beside": ["some"],
    "below": ["other"],
    "notes": ["A note of the table's own."],
}
#: A_last of each repeat in tenths of a percent; None: failed, absent: not run
RESULTS: dict[tuple[str, str], list[int | None]] = {
    ("glyphs", "linear_probe"): [400, 420, 440],
    ("glyphs", "finetune"): [400, None, 440],
    ("glyphs", "pm"): [500],
    ("glyphs", "trm"): [None, None, None],
    ("digits", "linear_probe"): [700, 700, 700],
}


@pytest.fixture(scope="module")
def reg() -> Registry:
    return Registry.load()


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[str, PublishedFamily]:
    folder = tmp_path_factory.mktemp("published")
    number = {"dataset": "glyphs", "n_tasks": 2, "metric": "a_last", "source": ["note"], "confidence": "note"}
    some = {
        "title": "Some & family", "about": "Other training.", "reproduction": {"protocol": "embedded", "class_order_seed": 0},
        "methods": {"pm": {"ours": "pm"}, "lora": {"ours": "finetune"}, "trm": {"ours": "trm"}, "pm/doubtful": {"ours": "pm", "why_not": "a misprint"}},
        "datasets": {"digits8": {"ours": "digits", "why_not": "another split"}},
        "sources": {"note": "a note"},
        "references": [
            number | {"method": "pm", "variant": "doubtful", "value": 1.5},
            number | {"method": "pm", "value": 55.25, "confidence": "page+note"},
            number | {"method": "lora", "value": 33.0, "std": 0.5, "confidence": "table"},
            number | {"method": "trm", "value": 60.0},
            number | {"method": "pm", "value": 88.0, "dataset": "digits8"},
            number | {"method": "pm", "value": 2.0, "metric": "forgetting", "n_tasks": None},
            number | {"method": "lora", "value": 99.0, "metric": "forgetting", "use": False},
        ],
    }  # fmt: skip
    other = {
        "title": "Other", "about": "Prompts.", "why_not": "no such backbone here", "methods": {"l2p": {"title": "L2P"}},
        "sources": {"note": "a note"}, "references": [number | {"method": "l2p", "value": 20.0}],
    }  # fmt: skip
    for key, content in {"some": some, "other": other}.items():
        (folder / f"{key}.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return {key: load_family(folder / f"{key}.yaml") for key in ("some", "other")}


def table(tmp_path: Path, **changes: Any) -> PaperTable:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in {**TABLE, **changes}.items() if v is not None}))
    return load_table(path)


def record_of(cell: Cell, a_last: int | None) -> dict[str, Any]:
    """A record as a run of the cell would write it, forgetting 10 points."""
    counts = [[[a_last + 50, 1000]], [[a_last - 50, 1000], [a_last + 50, 1000]]] if a_last else None
    made = fake.record(
        status="done" if a_last else "failed", n_tasks=2, counts=counts, id=cell.id, coordinates=cell.coordinates()
    )
    return made | {"method": cell.method.describe(), "request": cell.request, "code": cell.code()}


def records(empty: MeasuredTable) -> Iterable[dict[str, Any]]:
    for row in empty.entries:
        for entry in row:
            values = RESULTS.get((entry.place.dataset.key, entry.line.method), [])
            yield from (record_of(cell, value) for cell, value in zip(entry.cells, values, strict=False))


@pytest.fixture
def small(tmp_path: Path, reg: Registry, families: dict[str, PublishedFamily]) -> MeasuredTable:
    """With failed, stale, missing and single-repeat cells."""
    empty = measure(table(tmp_path), reg, [], {}, families)
    fake.write(tmp_path, records(empty))
    stale = {empty.entries[0][1].cells[0].id: Standing("stale")}
    rows = {row["id"]: row for row in detailed_rows(read_records(tmp_path), stale)}
    return measure(table(tmp_path), reg, [], rows, families)


# --- cells and numbers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [None, 7])
def test_cells_are_those_of_a_run(
    tmp_path: Path, reg: Registry, families: dict[str, PublishedFamily], order: int | None
) -> None:
    columns = [
        {"dataset": "digits", "tasks": [2, 5], "trainers": ["plain", "perturb"], "starts": ["previous", "merged"]}
    ]
    wanted = table(tmp_path, columns=columns, methods=["average", "pm_alpha@merged", "last"], class_order_seed=order)
    mine = measure(wanted, reg, [], {}, families).cells
    (suite,) = wanted.suites()
    run, blocked = expand(suite, reg, ROOT / "data", [], class_order_seed=order)
    assert not blocked
    assert set(mine) == {cell.id for cell in run}
    assert len(mine) == 3 * 2 * 2 * 2 * 3
    assert all(mine[cell.id].coordinates() == cell.coordinates() for cell in run)


def test_states(small: MeasuredTable) -> None:
    assert dict(small.states) == {"done": 8, "stale": 1, "failed": 4, "missing": 17}
    assert sum(small.states.values()) == len(small.cells) == 30


def test_numbers_by_hand(small: MeasuredTable) -> None:
    """Repeats 40, 42, 44: mean 42, s = 2. Forgetting of every one: 45 - 35 = 10; learning accuracy: A_last + 5."""
    frozen, sequential, pm, one_t, trm = (row[0] for row in small.entries)
    assert frozen.mean_sd("a_last") == pytest.approx((42.0, 2.0))
    assert frozen.mean_sd("learn_acc") == pytest.approx((47.0, 2.0))
    assert frozen.mean_sd("forgetting") == pytest.approx((10.0, 0.0))
    assert [e.text("a_last", True) for e in (frozen, sequential, pm, one_t, trm)] == [
        "42.0 ± 2.0", "42.0 ± 2.8 failed 1/3 (n = 2)", "50.0 (n = 1)", "not run", "failed",
    ]  # fmt: skip
    assert sequential.text("forgetting", False) == "10.0 ± 0.0"
    assert small.entries[0][1].text("a_last", True) == "70.0 ± 0.0 stale 1/3"


def test_published_beside(small: MeasuredTable, families: dict[str, PublishedFamily]) -> None:
    def value(i: int, j: int, metric: str = "a_last") -> float | None:
        found = small.published(families["some"], small.entries[i][j], metric)
        return found and found.value

    assert [value(i, 0) for i in range(5)] == [None, 33.0, 55.25, None, 60.0]  # not the doubtful one
    assert value(2, 1) == 88.0  # of the dataset that is ours under another name
    assert value(1, 0, "forgetting") is None  # not to be used


def test_a_row_can_name_what_is_published_beside_it(
    tmp_path: Path, reg: Registry, families: dict[str, PublishedFamily]
) -> None:
    named = table(tmp_path, methods=[{"method": "pm", "published": ["pm/doubtful"]}])
    found = measure(named, reg, [], {}, families)
    shown = found.published(families["some"], found.entries[0][0], "a_last")
    assert shown is not None
    assert shown.value == 1.5
    assert any("a misprint" in note for note in notes(found))


def test_notes_say_what_must_be_said(small: MeasuredTable) -> None:
    told = "\n".join(notes(small))
    for said in (
        "repeats 3-5",
        "A_learn: learning accuracy. F: forgetting.",
        "Of 30 cells: 1 stale (their code has changed since), 4 failed, 17 not run.",
        "Other training. These numbers are judged in verdicts.md",
        "digits8: not comparable: another split",
        "Published, Other: Prompts. These numbers are not comparable with the measured ones: no such backbone here.",
        "in no column: pm on glyphs, F 2.0 (the number of tasks is not stated)",
        "ᵇ two secondary sources",
        "† our reconstruction",
        "1/t = plain+average@merged",
        "A note of the table's own.",
    ):
        assert said in told


def test_another_protocol_is_a_footnote(tmp_path: Path, reg: Registry, families: dict[str, PublishedFamily]) -> None:
    columns = [{"dataset": "glyphs", "tasks": [2]}, {"dataset": "glyphs", "tasks": [2], "protocol": "pm"}]
    told = "\n".join(notes(measure(table(tmp_path, columns=columns), reg, [], {}, families)))
    assert "Protocol embedded:" in told
    assert re.search(r"Protocol pm: .*; 16 of its settings are inferred", told)
    assert "not comparable with the measured ones: the protocol of these columns is another" in told


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"metrics": ["a_last", "forgetting"]}, "forgetting is shown only beside learn_acc"),
        ({"metrics": ["a_lats"]}, "unknown metric 'a_lats'; did you mean 'a_last'"),
        ({"repeats": "x"}, "small.yaml: repeats: 'x'"),
        ({"methods": ["pmm"]}, "unknown method 'pmm'"),
        ({"methods": ["adarank"]}, "'adarank' keeps images of past tasks"),
        ({"methods": ["pm", {"method": "lora_m", "title": "P&M"}]}, "two rows are called 'P&M'"),
        ({"beside": ["sme"]}, "table small: unknown published family 'sme'; did you mean 'some'?"),
        ({"columns": [{"dataset": "digits", "tasks": [11]}]}, "11 tasks do not fit the 10 classes of digits"),
        ({"columns": [{"dataset": "digist", "tasks": [2]}]}, "unknown dataset 'digist'"),
        ({"colums": []}, "unknown key 'colums'"),
    ],
)
def test_mistakes(
    tmp_path: Path, reg: Registry, families: dict[str, PublishedFamily], changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError) as error:
        measure(table(tmp_path, **changes), reg, [], {}, families)
    assert said in str(error.value)


# --- formats ---------------------------------------------------------------------------------------------------------


def printed(measured: MeasuredTable, kind: str) -> str:
    document = formats.document(measured)
    return {
        "markdown": document.markdown,
        "latex": document.latex,
        "html": lambda: document.html(measured.table.key),
        "csv": lambda: formats.csv(measured),
    }[kind]()


@pytest.mark.parametrize("kind", ["markdown", "latex", "html", "csv"])
def test_golden_files(small: MeasuredTable, kind: str) -> None:
    text = printed(small, kind)
    golden = GOLDENS / f"paper.{kind}"
    if os.environ.get("CLMERGE_WRITE_GOLDENS"):
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(text, encoding="utf-8")
    assert text == golden.read_text(encoding="utf-8")


def test_csv_is_unrounded_and_says_what_is_measured(small: MeasuredTable) -> None:
    found = list(csv.DictReader(io.StringIO(formats.csv(small))))
    kinds = {line["kind"] for line in found}
    assert kinds == {"Measured, protocol embedded", "Published, Some & family", "Published, Other"}
    assert all(bool(line["family"]) == line["kind"].startswith("Published") for line in found)
    (sequential,) = [
        line
        for line in found
        if (line["label"], line["dataset_key"], line["metric"], line["family"])
        == ("Sequential", "glyphs", "a_last", "")
    ]
    assert float(sequential["sd"]) == pytest.approx(2.8284271247)
    assert (sequential["n"], sequential["wanted"], sequential["failed"]) == ("2", "3", "1")


def test_nothing_is_markup(tmp_path: Path, reg: Registry, families: dict[str, PublishedFamily]) -> None:
    hostile = "<b>a|b*c</b> & 50% $x_1$ #"
    found = measure(
        table(tmp_path, title=hostile, caption=hostile, methods=[{"method": "pm", "title": hostile}], notes=[hostile]),
        reg, [], {}, families,
    )  # fmt: skip
    assert "<b>" not in printed(found, "html")
    assert printed(found, "html").count("&lt;b&gt;") >= 4
    assert r"\<b>a\|b\*c\</b>" in printed(found, "markdown")
    assert r"\& 50\% \$x\_1\$ \#" in printed(found, "latex")


@cache
def _shipped(name: str) -> MeasuredTable:
    return measure(load_table(PAPER_TABLES / f"{name}.yaml"), Registry.load(), [], {}, load_families())


@pytest.mark.parametrize("name", SHIPPED)
def test_published_and_measured_are_never_in_one_column(name: str) -> None:
    signs = {sign for sign, _ in CONFIDENCE.values()}
    found = _shipped(name)
    for section in sections(found):
        for i, column in enumerate(section.heads[1:], start=1):
            texts = {row[i] for row in section.rows} - {""}
            assert texts
            if column[0].startswith("Measured"):
                assert texts == {"not run"}
            else:
                assert column[0].startswith("Published")
                assert all(text[-1] in signs for text in texts)
    kinds = {line["kind"].partition(",")[0] for line in lines(found)}
    assert ("Published" in kinds) == bool(found.families)


def test_shipped_tables_have_the_published_numbers_of_their_papers() -> None:
    def beside(name: str, label: str) -> set[str]:
        return {
            line["text"] for line in lines(_shipped(name)) if line.get("family") in ("pm", "magmax") and line["label"] == label
        }  # fmt: skip

    assert beside("pm_main", "P&M") == {"81.47ᵖ", "79.95ⁿ", "76.37ⁿ", "85.29ᵇ", "82.77ᵖ"}
    assert beside("pm_merging", "P&M") == {"79.95ⁿ", "76.37ⁿ", "56.57ᵇ", "84.71ⁿ", "88.45ⁿ", "78.29ᵇ"}
    assert beside("pm_ablation", "P&M, 1/t") == set()  # the cell that the paper lacks
    assert beside("pm_alpha", "P&M") == {"80.88ⁿ", "78.48ⁿ", "74.13ⁿ"}
    assert beside("pm_two_by_two", "closed form") == {"78.35ⁿ", "79.95ⁿ", "74.26ⁿ", "76.37ⁿ", "86.57ⁿ", "88.45ⁿ"}
    assert beside("trm", "TRM†") == {"83.5ᵖ", "80.5ᵖ", "78.6ᵖ", "83.2ᵖ", "82.7ᵖ", "70.4ᵖ"}


def test_reconstructions_keep_their_dagger() -> None:
    for kind in ("markdown", "html"):
        text = printed(_shipped("trm"), kind)
        assert "† our reconstruction from the abstract" in text
        assert not re.search(r"(\| |<td>)TRM( init)?( *\||</td>)", text)


def _latex_is_here() -> bool:
    return (
        shutil.which("pdflatex") is not None
        and not subprocess.run(["kpsewhich", "booktabs.sty"], capture_output=True, check=False).returncode
    )


@pytest.mark.skipif(not _latex_is_here(), reason="needs pdflatex and booktabs")
def test_latex_compiles(tmp_path: Path, small: MeasuredTable) -> None:
    text = "\n\\clearpage\n".join(printed(found, "latex") for found in (small, *map(_shipped, SHIPPED)))
    document = rf"\documentclass{{article}}\usepackage{{booktabs,graphicx}}\begin{{document}}{text}\end{{document}}"
    (tmp_path / "a.tex").write_text(document, encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-draftmode", "a.tex"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace", check=False)
    assert run.returncode == 0, run.stdout[-2000:]
    assert "Overfull \\hbox" not in run.stdout


# --- the command -----------------------------------------------------------------------------------------------------


def clmerge(*arguments: str) -> Any:
    done = CliRunner().invoke(cli, ["paper", *arguments])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def command_table(tmp_path: Path) -> list[str]:
    """A table of which one dataset is on every machine and the other on none, and where everything lies."""
    columns = [{"dataset": "digits", "tasks": [2]}, {"dataset": "cifar100", "tasks": [5], "protocol": "pm"}]
    table(tmp_path, columns=columns, methods=["linear_probe", "finetune"], beside=[], below=[], repeats="0-1")
    places = {name: str(tmp_path / name) for name in ("results", "data", "out")}
    options = [text for name, place in places.items() for text in (f"--{name}", place)]
    return ["--tables", str(tmp_path / "small.yaml"), *options]


def test_command_says_what_is_there(tmp_path: Path) -> None:
    done = clmerge(*command_table(tmp_path))
    assert done.exit_code == 0, done.output
    assert re.search(r"small +8 +8 +cifar100", done.output)
    assert "not on this machine: cifar100:" in done.output
    assert "published numbers: 0 consistent, 0 inconsistent, 37 not run, 247 not comparable" in done.output
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"small.md", "small.tex", "small.html", "small.csv", "verdicts.md", "verdicts.csv", "index.html"}
    assert not (tmp_path / "results").exists()


def test_command_runs_what_is_missing_and_says_what_it_cannot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[Cell] = []

    def execute(trials: list[list[Cell]], execution: Any, threads: int) -> bench.execute.execute.Outcome:
        ran.extend(cell for trial in trials for cell in trial)
        fake.write(execution.results, [record_of(cell, 800) for cell in ran[1:]])
        return bench.execute.execute.Outcome(failed={ran[0].id: "killed"})

    monkeypatch.setattr("bench.session.execute", execute)
    done = clmerge(*command_table(tmp_path), "--run", "--executor", "local")
    assert done.exit_code == 1
    assert "cannot run here: small, cifar100 pm: dataset 'cifar100' is not on this machine" in done.output
    assert done.output.index("cannot run here") < done.output.index("4 cells: digits T=2")
    assert {(c.dataset.key, c.method.key, c.run_seed) for c in ran} == {
        ("digits", method, seed) for method in ("linear_probe", "finetune") for seed in (0, 1)
    }
    assert re.search(r"small +8 +3 +5 +cifar100", done.output)
    assert "1 cells failed" in done.stderr


def test_command_mistakes(tmp_path: Path) -> None:
    done = clmerge("--tables", "pm_mian", "--results", str(tmp_path))
    assert done.exit_code == 2
    assert "unknown table 'pm_mian'; did you mean 'pm_main'" in done.stderr
