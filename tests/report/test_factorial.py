"""The axes of a factorial grid, and its report: two tables, a heat map, and a block for what keeps past images."""

from __future__ import annotations

import csv
import io
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from rich.console import Console
from scipy import stats

from bench.cli import cli
from bench.common.errors import UserError
from bench.config.files import load_suite, read_yaml
from bench.config.schema import SuiteConfig
from bench.plan.grid import cell_of, expand
from bench.registry import Registry
from bench.report import rows, tables
from bench.report.build import ReportConfig, build_report, write_report
from bench.report.figures import drawing
from bench.report.inference import factorial
from bench.report.inference.factorial import Column
from bench.report.inference.heat_map import figure as heat_map_figure
from tests.helpers import fake_records as fake

ROOT = Path(__file__).parents[2]
REPORT = ROOT / "reports" / "factorial.yaml"
REGISTRY = Registry.load()


# ---- the trainer axis ------------------------------------------------------------------------------------------------
def grid(**axes: Any) -> list[Any]:
    suite = SuiteConfig(key="t", protocol="embedded", datasets=["digits"], tasks=[2], seeds="1", **axes)
    return expand(suite, REGISTRY, ROOT / "data", [])[0]


def test_one_suite_crosses_rules_trainers_and_starts() -> None:
    cells = grid(methods=["average", "pm_alpha"], trainers=["plain", "perturb", "ewc"], start=["pretrained", "merged"])
    assert {c.method.variant.partition(":")[0] for c in cells} == {
        f"{t}+{r}@{s}"
        for t, r, s in product(("plain", "perturb", "ewc"), ("average", "pm_alpha"), ("pretrained", "merged"))
    }
    assert "pm" in {c.method.key for c in cells}  # a combination with a name keeps it
    for cell in cells:
        again = cell_of(cell.request, REGISTRY, [], ROOT / "data")
        assert (again.id, again.train_keys) == (cell.id, cell.train_keys)


def test_what_has_no_backbone_trainer_to_choose_keeps_its_own() -> None:
    variants = [c.method.variant for c in grid(methods=["joint", "linear_probe", "finetune"], trainers=["perturb"])]
    assert variants == ["joint+last@pretrained", "frozen+last@pretrained", "perturb+last@previous"]


def test_heads_are_an_axis_for_every_method_that_brings_none() -> None:
    cells = grid(methods=["average@merged", "pm", "ncm", "experts"], heads=["linear", "refit", "ncm"])
    assert [c.method.variant for c in cells] == [
        *(f"plain+average@merged{head}" for head in ("", "/refit", "/ncm")),
        *(f"perturb+pm_alpha@merged{head}" for head in ("", "/refit", "/ncm")),
        "frozen+last@pretrained/ncm", "plain+experts@pretrained",
    ]  # fmt: skip
    assert [c.protocol.head.kind for c in cells[:3]] == ["linear", "refit", "ncm"]
    assert cells[0].train_keys == cells[1].train_keys == cells[2].train_keys
    plain = grid(methods=["average@merged"])
    assert cells[0].id == plain[0].id  # the protocol's own head is no variant


def test_options_of_the_replaced_trainer_go_with_it_and_the_rules_stay() -> None:
    resolve = lambda spelling, trainer: REGISTRY.resolve(spelling, {}, trainer=trainer).variant  # noqa: E731
    assert resolve("pm:eps=0.3,clamp=false", "plain") == "plain+pm_alpha@merged:clamp=false"
    assert resolve("pm:trainer.eps=0.3", "gauss") == "gauss+pm_alpha@merged"
    assert resolve("pm:eps=0.3", "perturb") == "perturb+pm_alpha@merged:eps=0.3"
    assert resolve("ewc_online", "plain") == "plain+last@previous"
    with pytest.raises(UserError, match="unknown trainer 'pertub'; did you mean 'perturb'"):
        resolve("average", "pertub")
    with pytest.raises(UserError, match="unknown option 'epss'"):
        resolve("pm:epss=1", "plain")


def test_an_option_that_both_parts_have_is_spelled_so_that_it_can_be_read_back() -> None:
    method = REGISTRY.resolve("task_arithmetic@merged:lam=0.4", {"ewc": {"lam": 3.0}}, trainer="ewc")
    assert (method.trainer_options["lam"], method.rule_options["lam"]) == (3.0, 0.4)
    assert REGISTRY.resolve(method.variant, {"ewc": {"lam": 3.0}}).identity() == method.identity()


@pytest.mark.parametrize("option", ["--trainer", "--trainers"])
def test_the_command_line_names_trainers(option: str, tmp_path: Path) -> None:
    arguments = ["plan", "--datasets", "digits", "--methods", "average@merged", "--seeds", "1", option, "perturb,ewc",
                 "--results", str(tmp_path)]  # fmt: skip
    told = CliRunner().invoke(cli, arguments)
    assert told.exit_code == 0, told.output
    assert "2 methods" in told.output


def test_validation_and_held_out_cells_share_trainings_and_nothing_with_the_full_ones() -> None:
    full, val, held = (grid(methods=["average"], eval_split=split)[0] for split in ("test", "val", "test_heldout"))
    assert len({c.id for c in (full, val, held)}) == 3
    assert held.train_keys == val.train_keys
    assert not set(held.train_keys.values()) & set(full.train_keys.values())
    assert held.opt_steps() == val.opt_steps() < full.opt_steps()


def test_the_shipped_suites_have_the_axes_and_repeats_of_the_factorial() -> None:
    suite = load_suite("factorial")
    assert (suite.trainers, suite.start) == (["plain", "perturb"], ["pretrained", "previous", "merged"])
    assert {load_suite(name).seeds for name in ("factorial", "rules", "regret")} == {"3-7"}
    assert load_suite("regret").eval_split == "test_heldout"


# ---- records ---------------------------------------------------------------------------------------------------------
def record(
    rule: str, trainer: str = "plain", start: str = "merged", seed: int = 0, a_last: int = 500, status: str = "done",
    options: dict[str, Any] | None = None, method_status: str = "variant", image_bytes: int | None = None,
    key: str | None = None, **changes: Any,
) -> dict[str, Any]:  # fmt: skip
    """A cell of the factorial, A_last in tenths of a percent."""
    spelled = ",".join(f"{k}={v}" for k, v in (options or {}).items())
    variant = f"{trainer}+{rule}@{start}" + (f":{spelled}" if spelled else "")
    value = fake.record(rule, seed, n_tasks=2, status=status, counts=[[[a_last, 1000]] * (t + 1) for t in range(2)])
    key = key or variant.removeprefix("plain+")
    value["id"] = f"{variant}-{seed}-{value['id']}"
    value["coordinates"] |= {"variant": variant, "start": start, "method": key}
    value["method"] |= {
        "key": key, "status": method_status, "start": start, "trainer": {"key": trainer, "adapt": True},
        "rule": {"key": rule, "delta": "total" if start == "previous" else "increment", **(options or {})},
        "data": {"training": "current", "merging": "none", "keeps_images": image_bytes is not None},
    }  # fmt: skip
    value["totals"] |= {"carried_image_bytes": image_bytes or 0}
    return value | changes


def labelled(records: list[dict[str, Any]]) -> list[rows.Row]:
    return rows.labelled(rows.detailed_rows(records))


def heat_map(records: list[dict[str, Any]], **config: Any) -> factorial.HeatMap:
    (only,) = factorial.heat_maps(factorial.FactorialConfig(**config), labelled(records))
    return only


def full(seeds: int = 5) -> list[dict[str, Any]]:
    """Three rules, two trainers, three starts; an oracle and a rule that keeps images at the common start only."""
    records = [
        record(rule, trainer, start, seed, 400 + 20 * i + 7 * seed)
        for i, (rule, trainer, start) in enumerate(
            product(("average", "ties", "magmax"), ("plain", "perturb"), ("pretrained", "previous", "merged"))
        )
        for seed in range(seeds)
    ]
    for seed in range(seeds):
        records.append(record("adamerging", seed=seed, a_last=640 + seed, image_bytes=65_536))
        records.append(record("best", seed=seed, a_last=700 + seed, method_status="oracle"))
    return records


# ---- the heat map ----------------------------------------------------------------------------------------------------
def test_a_cell_is_the_mean_and_t_interval_of_its_repeats() -> None:
    values = [500, 520, 530, 560, 590]
    found = heat_map([record("ties", seed=s, a_last=a) for s, a in enumerate(values)])
    mean, low, high = found.cells["ties", Column("plain", "merged")].interval
    scores = [v / 10 for v in values]
    assert (low, high) == pytest.approx(stats.t.interval(0.95, 4, mean, stats.sem(scores)))
    assert mean == pytest.approx(54.0)
    assert found.cells["ties", Column("plain", "merged")].text(5) == "54.0 [49.6, 58.4]"


def test_rows_columns_and_sections() -> None:
    found = heat_map(full(), trainers=["plain", "perturb"])
    assert found.columns == [Column(*at) for at in product(("plain", "perturb"), ("pretrained", "previous", "merged"))]
    assert found.sections == {  # within a section, best at the common start first
        factorial.NO_IMAGES: ["magmax", "ties", "average"],
        tables.KEEPS_IMAGES: ["adamerging"],
        factorial.ORACLES: ["best°"],
    }
    assert len(found.cells) == 18 + 2
    assert heat_map(full(), rules=["average", "ties"]).sections[factorial.NO_IMAGES] == ["average", "ties", "magmax"]


def test_an_option_makes_a_row_only_where_it_tells_two_cells_apart() -> None:
    """``delta`` follows the start here, so it does not; the density does, also at starts where one was run."""
    records = [record("ties", start=s, options=o) for s in ("merged", "previous") for o in ({}, {"density": 0.1})]
    records.append(record("ties", start="pretrained", options={"density": 0.1}))
    found = heat_map(records)
    assert found.sections[factorial.NO_IMAGES] == ["ties", "ties:density=0.1"]
    assert ("ties", Column("plain", "pretrained")) not in found.cells


def test_joint_frozen_and_imported_rows_are_no_part_of_the_factorial() -> None:
    joint, frozen, foreign = record("last"), record("last", seed=1), record("l2p", seed=2)
    joint["method"]["data"]["training"] = "seen"
    frozen["method"]["trainer"]["adapt"] = False
    foreign["method"] |= {"trainer": {}, "rule": {}, "status": "imported"}
    (only,) = heat_map([record("ties", seed=3), joint, frozen, foreign]).cells
    assert only == ("ties", Column("plain", "merged"))


def test_columns_are_heads_where_the_report_lists_them() -> None:
    def with_head(rule: str, head: str, seed: int, a_last: int, **changes: Any) -> dict[str, Any]:
        value = record(rule, seed=seed, a_last=a_last, **changes)
        value["method"]["head"] = head if head != "linear" else None  # the protocol's
        value["coordinates"]["variant"] += f"/{head}"
        return value

    records = [
        with_head(rule, head, seed, base + seed)
        for rule, head, base in (("average", "linear", 500), ("ties", "linear", 600), ("average", "ncm", 700))
        for seed in range(5)
    ]
    elsewhere = [record("average", start="pretrained"), record("average", trainer="perturb")]
    unlisted = [with_head("average", "refit", 0, 900)]
    found = heat_map([*records, *elsewhere, *unlisted], heads=["linear", "ncm"])
    assert found.columns == [Column("plain", "merged", "linear"), Column("plain", "merged", "ncm")]
    assert [(column.group, column.name) for column in found.columns] == [
        ("plain+rule@merged", "linear"), ("plain+rule@merged", "ncm"),
    ]  # fmt: skip
    assert found.sections == {factorial.NO_IMAGES: ["ties", "average"]}  # best under the first head first
    assert {place: len(cell.values) for place, cell in found.cells.items()} == {
        ("average", found.columns[0]): 5, ("ties", found.columns[0]): 5, ("average", found.columns[1]): 5,
    }  # fmt: skip
    lines = list(csv.DictReader(io.StringIO(factorial.csv([found]))))
    assert {(x["rule"], x["start"], x["head"], x["mean"]) for x in lines} >= {("average", "merged", "ncm", "70.2")}
    assert "plain+rule@merged, ncm" in factorial.document([found]).markdown()


def test_failures_missing_repeats_and_absent_cells_are_told_apart() -> None:
    records = [r for r in full() if not (r["coordinates"]["run_seed"] > 2 and "magmax@previous" in r["id"])]
    records = [r for r in records if "perturb+ties@merged" not in r["id"]]
    records += [record("ties", "perturb", "merged", s, status="failed") for s in range(5)]
    records += [record("average", "plain", "merged", 9, status="failed")]
    found = heat_map(records)
    text = {place: cell.text(found.n) for place, cell in found.cells.items()}
    assert text["ties", Column("perturb", "merged")] == "failed 5/5"
    assert text["average", Column("plain", "merged")].endswith("failed 1/6")
    assert text["magmax", Column("plain", "previous")].endswith("n = 3")
    assert ("adamerging", Column("perturb", "merged")) not in text
    lines = list(csv.DictReader(io.StringIO(factorial.csv([found]))))
    failed = next(x for x in lines if (x["rule"], x["trainer"], x["start"]) == ("ties", "perturb", "merged"))
    assert (failed["n"], failed["failed"], failed["mean"]) == ("0", "5", "")
    assert len(lines) == len(found.cells)


def drawn(maps: list[factorial.HeatMap], monkeypatch: pytest.MonkeyPatch) -> Any:
    kept: list[Any] = []
    monkeypatch.setattr(drawing, "_saved", lambda figure, kind, **_: kept.append(figure) or b"")
    heat_map_figure(maps)
    return kept[0]


def test_the_figure_prints_every_number_leaves_gaps_empty_and_hatches_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    records = [*full(), record("opcm", status="failed")]
    found = heat_map(records)
    figure = drawn([found], monkeypatch)
    words = [text.get_text() for text in figure.findobj(Text)]
    for cell in found.cells.values():
        if cell.values:
            assert f"{cell.interval[0]:.1f}" in words
    places = len(found.columns) * sum(map(len, found.sections.values()))
    assert words.count("–") == places - len(found.cells)
    assert sum(bool(r.get_hatch()) for r in figure.findobj(Rectangle)) == 1
    assert {factorial.NO_IMAGES, tables.KEEPS_IMAGES, factorial.ORACLES, "failed 1/1"} <= set(words)
    assert any("n = 5 repeats" in " ".join(text.split()) for text in words)
    assert any("oracle: sees more" in " ".join(text.split()) for text in words)


def test_nothing_measured_draws_nothing() -> None:
    assert heat_map_figure([heat_map([record("ties", status="failed")])]) == {}
    assert heat_map_figure([]) == {}


# ---- the report ------------------------------------------------------------------------------------------------------
def test_the_report_has_two_tables_and_the_same_numbers_in_every_file(tmp_path: Path) -> None:
    named = [record("magmax", start="previous", seed=s, key="magmax", method_status="published") for s in range(2)]
    rest = [r for r in full(2) if "plain+magmax@previous" not in r["id"]]
    results = fake.write(tmp_path, [*rest, *named])
    report = build_report(results, REPORT)
    heads = [block.title.partition("embedded. ")[2] for block in report.blocks]
    assert heads == [
        "Every rule at start merged, trainer plain",
        f"Every rule at start merged, trainer plain. {tables.KEEPS_IMAGES}",
        "The papers' own starts",
    ]
    assert [line["label"] for line in report.blocks[-1].lines] == ["magmax"]
    assert {line["variant"] for line in report.blocks[0].lines} == {
        f"plain+{rule}@merged" for rule in ("best", "magmax", "ties", "average")
    }
    names = {path.name for path in write_report(results, tmp_path / "out", REPORT)}
    assert names == {
        "index.html", "table.md", "table.tex", "table.csv", "heatmap.md", "heatmap.csv", "heatmap.png", "heatmap.pdf",
    }  # fmt: skip
    text = (tmp_path / "out" / "heatmap.md").read_text()
    for line in csv.DictReader((tmp_path / "out" / "heatmap.csv").open()):
        assert f"{float(line['mean']):.1f} [{float(line['low']):.1f}, {float(line['high']):.1f}]" in text
    again = write_report(results, tmp_path / "again", REPORT)
    assert all(path.read_bytes() == (tmp_path / "out" / path.name).read_bytes() for path in again)


def test_the_shipped_report_reads() -> None:
    config = read_yaml(REPORT, ReportConfig).factorial
    assert config is not None
    assert (config.start, config.trainer) == ("merged", "plain")


# ---- methods that keep images of past tasks --------------------------------------------------------------------------
def test_methods_that_keep_images_have_their_own_block_with_the_bytes_in_every_format(tmp_path: Path) -> None:
    report = build_report(fake.write(tmp_path, full()))
    mine, theirs = report.blocks
    assert mine.title == "glyphs, T = 2, protocol embedded"
    assert theirs.title == "glyphs, T = 2, protocol embedded. Keeps images of past tasks"
    assert [line["label"] for line in theirs.lines] == ["adamerging@merged"]
    assert "adamerging@merged" not in [line["label"] for line in mine.lines]
    console = Console(width=250, file=io.StringIO())
    console.print(report.terminal())
    assert isinstance(console.file, io.StringIO)
    for text in (report.markdown(), report.latex(), console.file.getvalue()):
        assert text.count("Keeps images of past tasks") == 1
        assert text.count("65.5 kB") == 1
    lines = {r["label"]: r for r in csv.DictReader(io.StringIO(tables.table_csv(report.blocks)))}
    assert lines["adamerging@merged"]["keeps_images"] == "True"
    assert float(lines["adamerging@merged"]["carried_image_bytes_mean"]) == 65_536
    assert lines["best@merged°"]["keeps_images"] == "False"


def test_what_declares_images_but_kept_none_and_old_records_stay_in_the_main_block() -> None:
    current, old, failed = record("a", image_bytes=0), record("b"), record("c", image_bytes=9, status="failed")
    del old["totals"]["carried_image_bytes"], old["method"]["data"]
    failed["totals"] = {}
    mine, theirs = tables.blocks(labelled([current, old, failed]))
    assert [line["method"] for line in mine.lines] == ["a@merged", "b@merged"]
    assert [line["method"] for line in theirs.lines] == ["c@merged"]
    assert mine.lines[1]["carried_image_bytes"] == (0, None)


def test_only_methods_that_keep_images_make_one_block() -> None:
    (only,) = tables.blocks(labelled([record("a", image_bytes=9)]))
    assert only.keeps_images


@pytest.mark.parametrize(("split", "words"), [("val", "evaluated on"), ("test_heldout", "the test set is evaluated")])
def test_titles_and_notes_name_the_split(split: str, words: str) -> None:
    records = [record("ties")]
    records[0]["coordinates"]["eval_split"] = split
    (block,) = tables.blocks(labelled(records))
    assert f"{split} split" in block.title
    assert words in block.notes[0]
    assert f"Split {split}" in heat_map(records).caption
