"""Figures: what is drawn, read back from the artists, and what is left out."""

from __future__ import annotations

import hashlib
import io
import json
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from matplotlib.axis import Axis
from matplotlib.collections import QuadMesh
from matplotlib.lines import Line2D
from matplotlib.text import Text

from bench.common.errors import UserError
from bench.config.files import read_yaml
from bench.config.schema import Section
from bench.report import figures
from bench.report.build import ReportConfig, build_report, write_report
from bench.report.figures import KINDS, FigureConfig, draw, drawing, ladder, scatter
from bench.report.figures.confusion import shares
from bench.report.figures.curves import accuracy_against_tasks, accuracy_over_tasks, alpha, onset
from bench.report.figures.losses import losses
from bench.report.figures.variance import split, variance
from tests.helpers import fake_records as fake

ROOT = Path(__file__).resolve().parents[2]


def rows(tmp_path: Path, records: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows and labels as a report hands them to a figure."""
    report = build_report(fake.write(tmp_path, records))
    return report.rows, list(dict.fromkeys(line["label"] for block in report.blocks for line in block.lines))


def words(figure: Any) -> str:
    return " ".join(" ".join(text.get_text().split()) for text in figure.findobj(Text))


def drawn_points(axes: Any) -> list[tuple[list[float], list[float]]]:
    """Every line of the panel that has as many points as data, in data coordinates."""
    return [
        (list(map(float, line.get_xdata())), list(map(float, line.get_ydata())))
        for line in axes.get_lines()
        if line.get_transform() == axes.transData and len(line.get_xdata())
    ]


def boxes(figure: Any) -> list[tuple[str, Any]]:
    """Every text that is drawn, with its place on the page; ticks beyond the limits of a panel are not drawn."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure).draw()
    ticks = {
        id(t) for axis in figure.findobj(Axis) for tick in axis.majorTicks + axis.minorTicks for t in tick.findobj(Text)
    }
    seen = {
        id(text)
        for axis in figure.findobj(Axis)
        for tick in axis._update_ticks()
        for text in (tick.label1, tick.label2)
    }
    texts = [
        t
        for t in figure.findobj(Text)
        if t.get_visible() and t.get_text().strip() and (id(t) not in ticks or id(t) in seen)
    ]
    return [(text.get_text(), text.get_window_extent()) for text in texts]


def overlapping(figure: Any) -> list[tuple[str, str]]:
    """Pairs of texts that lie over each other; the blank above and below letters may."""
    return [
        (one, other)
        for (one, a), (other, b) in combinations(boxes(figure), 2)
        if min(a.x1, b.x1) - max(a.x0, b.x0) > 1 and min(a.y1, b.y1) - max(a.y0, b.y0) > 0.3 * min(a.height, b.height)
    ]


def outside(figure: Any) -> list[str]:
    """Texts that the edge of the page cuts."""
    page = figure.bbox
    return [name for name, b in boxes(figure) if b.x0 < -1 or b.y0 < -1 or b.x1 > page.x1 + 1 or b.y1 > page.y1 + 1]


# --- every figure ----------------------------------------------------------------------------------------------------
def whole(n_tasks: int = 5, seeds: int = 2) -> list[dict[str, Any]]:
    """Records of many methods with everything that any figure needs, predictions left aside."""
    records = []
    for method, order in product([*fake.METHODS, *(f"rule_number_{i:02d}" for i in range(12))], range(seeds)):
        value = fake.record(method, order, n_tasks=n_tasks)
        if method != "joint":
            value["tasks"] = [
                task(t, alpha=1 / t + 0.01 * order, loss=2.0 + 0.1 * t, norm=0.1 * t + len(method))
                for t in range(1, n_tasks + 1)
            ]
        records.append(value)
    return records


def task(t: int, loss: float, norm: float, **scalars: float) -> dict[str, Any]:
    return {
        "t": t,
        "classes": [2 * t - 2, 2 * t - 1],
        "scalars": scalars,
        "onset": {"loss": {"0": loss, "10": loss / 2}, "grad_norm": {"0": norm, "10": norm / 2}},
    }


@pytest.mark.parametrize("name", [name for name in KINDS if name not in ("confusion", "variance")])
def test_with_22_methods_no_label_overlaps_or_is_cut(tmp_path: Path, name: str) -> None:
    found, labels = rows(tmp_path, whole(5) + (whole(10) if name == "accuracy_against_tasks" else []))
    with drawing.paper_style():
        figure = KINDS[name].plot(found, labels)
        assert overlapping(figure) == []
        assert outside(figure) == []
    assert "n = " in words(figure)
    if name not in ("losses", "stability", "alpha", "onset"):
        assert "oracle: sees more" in words(figure)
        assert "joint°" in words(figure)
    assert "our reconstruction" in words(figure)


def test_what_has_no_data_is_left_out_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "rendered", lambda figure: {"png": b""})
    found, labels = rows(tmp_path, [fake.record("pm", 0)])
    chosen = draw([FigureConfig(name=name) for name in KINDS], found, labels)
    assert set(chosen.drawn) == {"accuracy_over_tasks", "losses", "ladder", "stability", "costs"}
    assert [note.split()[1] for note in chosen.notes] == [name for name in KINDS if name not in chosen.drawn]
    assert all(" is left out: " in note for note in chosen.notes)
    nothing, labels = rows(tmp_path / "failed", [fake.record("pm", 0, status="failed")])
    chosen = draw([FigureConfig(name=name) for name in KINDS], nothing, labels)
    assert chosen.drawn == {}
    assert len(chosen.notes) == len(KINDS)


def test_a_report_lists_figures_and_notes_what_is_left_out(tmp_path: Path) -> None:
    fake.write(tmp_path, fake.grid(2, methods=("pm", "ewc")))
    mine = tmp_path / "mine.yaml"
    mine.write_text("figures: [{name: stability, methods: [pm]}, variance]\n")
    first, second = (write_report(tmp_path, tmp_path / name, mine) for name in ("a", "b"))
    names = {path.name for path in first}
    assert {"stability.png", "stability.pdf"} <= names
    assert "variance.png" not in names
    assert "Figure variance is left out: no method was run with" in (tmp_path / "a" / "table.md").read_text()
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes(), one.name


@pytest.mark.parametrize(
    ("text", "told"),
    [("figures: [stabilty]", "stability"), ("figures: [costs, {name: costs, tasks: [5]}]", "listed twice")],
)
def test_a_slip_in_the_list_is_told(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(UserError, match=told):
        read_yaml(tmp_path / "mine.yaml", ReportConfig)


def test_a_figure_shows_what_it_was_asked_for(tmp_path: Path) -> None:
    found, _ = rows(
        tmp_path, [fake.record(m, n_tasks=n, dataset=d) for m in ("pm", "ewc") for n in (2, 5) for d in "ab"]
    )
    config = FigureConfig(name="costs", methods=["pm"], datasets=["a"], tasks=[5])
    assert [(row["label"], row["dataset"], row["n_tasks"]) for row in found if config.shows(row)] == [("pm", "a", 5)]
    assert set(draw([config], found, labels=["ewc"]).drawn) == {"costs"}  # a table need not hold every method


def test_every_shipped_report_lists_figures_that_exist() -> None:
    files = [file for file in (ROOT / "reports").glob("*.yaml") if "figures" in yaml.safe_load(file.read_text())]
    assert len(files) >= 2
    assert all(isinstance(read_yaml(file, ReportConfig), Section) for file in files)


def test_fifty_labels_look_different_without_colour() -> None:
    looks = drawing.looks([str(i) for i in range(50)])
    assert len({(look.marker, look.dashes) for look in looks.values()}) == 50
    assert len({(look.marker, look.colour) for look in looks.values()}) == 50
    grey = [sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), look.colour, strict=True)) for look in looks.values()]
    assert max(grey) < 0.7  # on white paper


# --- lines -----------------------------------------------------------------------------------------------------------
def test_lines_are_means_over_repeats(tmp_path: Path) -> None:
    counts = [[[[600, 1000]], [[300, 1000], [500, 1000]]], [[[800, 1000]], [[500, 1000], [500, 1000]]]]
    found, labels = rows(tmp_path, [fake.record("pm", s, n_tasks=2, counts=c) for s, c in enumerate(counts)])
    figure = accuracy_over_tasks(found, labels)
    assert ([1, 2], [70, 45]) in [
        ([round(v) for v in x], [round(v, 6) for v in y]) for x, y in drawn_points(figure.axes[0])
    ]
    (band,) = figure.axes[0].collections
    # The sample sd of 60 and 80 is 14.142, of 40 and 50 it is 7.071.
    ys = sorted({round(float(y), 3) for _, y in band.get_paths()[0].vertices})
    assert ys == [37.929, 52.071, 55.858, 84.142]
    assert "n = 2 repeats" in words(figure)


def test_accuracy_against_the_number_of_tasks(tmp_path: Path) -> None:
    counts = {2: fake.flat(600), 3: fake.flat(400, 3), 4: fake.flat(200, 4)}
    records = [fake.record("pm", n_tasks=n, counts=c) for n, c in counts.items()]
    # Alone in its stream a method has a short label, beside another start a long one; it stays one line.
    records += [fake.record("average", n_tasks=n, counts=c) for n, c in counts.items()]
    records += [fake.record("ewc", n_tasks=2, counts=counts[2])]
    figure = accuracy_against_tasks(*rows(tmp_path, records))
    lines = drawn_points(figure.axes[0])
    assert sum(x == [2, 3, 4] and y == pytest.approx([60, 40, 20]) for x, y in lines) == 2
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["2", "3", "4"]
    assert "At one T only, so not shown: ewc" in words(figure)


def test_alpha_stands_beside_one_over_t(tmp_path: Path) -> None:
    records = []
    for seed, level in enumerate((0.4, 0.6)):
        tasks = [task(1, 1, 1, alpha=1.0), task(2, 1, 1, alpha=level), task(3, 1, 1, alpha=level / 2)]
        records += [fake.record("pm", seed, n_tasks=3, tasks=tasks), fake.record("ewc", seed, n_tasks=3)]
    figure = alpha(*rows(tmp_path, records))
    lines = drawn_points(figure.axes[0])
    assert any(x == [2, 3] and y == pytest.approx([1 / 2, 1 / 3]) for x, y in lines)
    assert any(x == [2, 3] and y == pytest.approx([0.5, 0.25]) for x, y in lines)
    assert "ewc" not in words(figure)


def test_onset_draws_loss_and_gradient_and_joins_what_was_trained_alike(tmp_path: Path) -> None:
    same = [task(t, loss=3.0 - t, norm=0.5 * t) for t in (1, 2)]
    other = [task(t, loss=4.0 - t, norm=0.25 * t) for t in (1, 2)]
    records = [
        fake.record(method, n_tasks=2, tasks=tasks)
        for method, tasks in (("average", same), ("task_arithmetic", same), ("pm", other), ("joint", same[:1]))
    ]
    figure = onset(*rows(tmp_path, records))
    assert [axes.get_ylabel() for axes in figure.axes] == ["loss of the new task (nats)", "gradient norm"] * 2
    loss, norm, loss10, _ = ([y for _, y in drawn_points(axes) if len(y) == 2] for axes in figure.axes)
    assert sorted(loss) == [[2, 1], [3, 2]]
    assert sorted(norm) == [[0.25, 0.5], [0.5, 1]]
    assert sorted(loss10) == [[1, 0.5], [1.5, 1]]
    assert "Trained alike, one line: average = task_arithmetic" in words(figure)


# --- bars, points, rungs ----------------------------------------------------------------------------------------------
def test_bars_are_learning_merge_drop_and_drift(tmp_path: Path) -> None:
    counts = [[[900, 1000]], [[500, 1000], [700, 1000]]]
    records = [fake.record("pm", n_tasks=2, counts=counts, before_merge=[[950, 1000], [650, 1000]])]
    records += [fake.record("ewc", n_tasks=2, before_merge=[]), fake.record("joint", n_tasks=2)]
    found, labels = rows(tmp_path, records)
    figure = losses(found, labels)
    names = [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
    place = next(i for i, name in enumerate(names) if name == "pm  60.0")
    widths = [
        {round(bar.get_y() + bar.get_height() / 2): bar.get_width() for bar in axes.patches} for axes in figure.axes
    ]
    # learned (90 + 70) / 2; drop (5 - 5) / 2; drift (40 + 0) / 2
    assert [panel[place] for panel in widths] == pytest.approx([80, 0, 20])
    assert 1 - place not in widths[1]
    assert "not defined" in words(figure)
    assert "not shown: joint°" in words(figure)


def test_stability_against_plasticity(tmp_path: Path) -> None:
    records = [
        fake.record("pm", n_tasks=2, counts=[[[900, 1000]], [[500, 1000], [700, 1000]]]),
        fake.record("ewc", n_tasks=2),
    ]
    figure = scatter.stability(*rows(tmp_path, records))
    (axes,) = figure.axes
    assert ([80.0], [20.0]) in [([round(v, 6) for v in x], [round(v, 6) for v in y]) for x, y in drawn_points(axes)]
    low, high = axes.get_ylim()
    assert low > high  # little drift is up
    slopes = {line.get_slope() for line in axes.get_lines() if hasattr(line, "get_slope")}
    assert slopes == {1}


def test_costs_have_a_place_for_nothing_carried(tmp_path: Path) -> None:
    some, none = fake.record("pm", a_last=50), fake.record("ewc", a_last=40)
    some["totals"] |= {"carried_bytes": 2_000_000}
    none["totals"] |= {"carried_bytes": 0, "train_s_alone": 4.0, "merge_s": 1.0}
    found, labels = rows(tmp_path, [some, none])
    carried, seconds = scatter.costs(found, labels).axes
    assert {x[0] for x, _ in drawn_points(carried)} == {0, 2_000_000}
    assert {x[0] for x, _ in drawn_points(seconds)} == {5.0, 10.5}
    assert list(carried.get_xticks()) == [0, 10**6, 10**7]
    heights = {row["label"]: row["a_last"] for row in found}
    assert {(x[0], y[0]) for x, y in drawn_points(carried)} == {(0, heights["ewc"]), (2_000_000, heights["pm"])}


def test_rungs_follow_from_what_a_method_may_see_and_change(tmp_path: Path) -> None:
    fitted = fake.record("ncm")
    fitted["method"] |= {"status": "baseline", "trainer": {"key": "f", "adapt": False}, "head": "ncm"}
    ceiling = fake.record("best_alpha")
    ceiling["method"] |= {"status": "oracle"}
    images = fake.record("replay")
    images["method"]["data"]["keeps_images"] = True
    images["totals"]["carried_image_bytes"] = 5
    records = [fitted, ceiling, images, *(fake.record(m) for m in ("joint", "linear_probe", "pm", "finetune"))]
    found, labels = rows(tmp_path, records)
    assert {row["label"]: ladder.rung(row) for row in found} == {
        "ncm": ladder.FITTED,
        "best_alpha°": ladder.ORACLES,
        "replay": ladder.IMAGES,
        "joint°": ladder.ALL_DATA,
        "linear_probe": ladder.FROZEN,
        "pm": ladder.LEARNERS,
        "finetune": ladder.LEARNERS,
    }
    figure = ladder.ladder(found, labels)
    ticks = [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
    assert [tick for tick in ticks if tick in ladder.RUNGS] == list(ladder.RUNGS)
    level = {row["label"]: row["a_last"] for row in found}
    dashed = [line.get_xdata()[0] for line in figure.axes[0].get_lines() if line.get_linestyle() == "--"]
    assert sorted(dashed) == pytest.approx(sorted([level["linear_probe"], level["joint°"]]))
    (way,) = figure.axes[0].child_axes
    way.apply_aspect()
    forward = way._functions[0]
    assert [forward(level["linear_probe"]), forward(level["joint°"])] == pytest.approx([0, 100])


# --- confusion --------------------------------------------------------------------------------------------------------
def predictions(true: list[int], rows: list[list[int]]) -> bytes:
    with io.BytesIO() as data:
        np.savez(data, t=np.arange(1, len(rows) + 1), true=np.array(true), predicted=np.array(rows))
        return data.getvalue()


def test_shares_by_hand(tmp_path: Path) -> None:
    # Task 1 has columns 0-1, task 2 columns 2-4; -1 is an image that is not evaluated.
    (tmp_path / "pred.npz").write_bytes(
        predictions([0, 0, 1, 1, 2, 3, 4, 4, -1], [[0] * 9, [0, 1, 2, 0, 2, 4, 1, 0, 1]])
    )
    assert shares(tmp_path / "pred.npz", [2, 3]).tolist() == [[75, 25], [50, 50], [62.5, 37.5]]


def test_confusion_is_the_mean_over_repeats_of_the_last_row(tmp_path: Path) -> None:
    records = [fake.record("pm", s, n_tasks=2, tasks=[task(1, 1, 1), task(2, 1, 1)]) for s in (0, 1)]
    records += [fake.record("joint", 0, n_tasks=2, tasks=[task(2, 1, 1)])]  # learns its tasks at once
    records += [fake.record("ewc", 0, n_tasks=2, tasks=[task(1, 1, 1), task(2, 1, 1)])]
    lasts = ([0, 2, 3, 3], [0, 1, 2, 1], [0, 0, 2, 2], [0, 0, 0, 0])
    stored = [predictions([0, 1, 2, 3], [last]) for last in lasts]
    for record, data in zip(records, stored, strict=True):
        record["predictions_sha256"] = hashlib.sha256(data).hexdigest()
    fake.write(tmp_path, records)
    for record, data in zip(records, [*stored[:3], b"cut off"], strict=True):
        (tmp_path / "runs" / record["id"] / "pred.npz").write_bytes(data)
    found, labels = rows(tmp_path, [])
    figure = KINDS["confusion"].plot(found, labels)
    by_title = {
        axes.get_title().split("\n")[0]: [mesh.get_array() for mesh in axes.findobj(QuadMesh)]
        for axes in figure.axes[:2]
    }
    assert np.concatenate(by_title["joint°"]).tolist() == [[100, 0], [0, 100], [50, 50]]
    # pm: one of two and both of task 1 stay; none and one of two of task 2 go to task 1.
    assert np.concatenate(by_title["pm"]).tolist() == [[75, 25], [25, 75], [50, 50]]
    assert "75" in words(figure)
    assert "ewc" not in words(figure)
    assert "Cells without whole predictions: 1." in words(figure)


# --- variance ---------------------------------------------------------------------------------------------------------
def test_variance_split_by_hand() -> None:
    # Orders' means 52, 55, 61 (variance 21); within each order the runs are -2, 0, +2 around it (variance 4).
    values = {(o, r): m + d for o, m in enumerate((52.0, 55.0, 61.0)) for r, d in enumerate((-2.0, 0.0, 2.0))}
    found = split(values | {(3, 3): 90.0, (4, 4): 10.0}, 1000)  # repeats off the grid say nothing here
    assert found is not None
    assert (found.orders, found.runs) == (3, 3)
    assert found.run**2 == pytest.approx(4)
    assert found.order**2 == pytest.approx(21 - 4 / 3)
    # Mean of p (100 - p) = 100 * 56 - (56^2 + 14 + 8/3), 14 the variance (divided by n) of means, 8/3 within.
    assert found.test**2 == pytest.approx((5600 - 3136 - 14 - 8 / 3) / 1000)


def test_a_negative_component_is_nought_and_a_diagonal_has_none() -> None:
    found = split({(0, 0): 50.0, (0, 1): 60.0, (1, 0): 60.0, (1, 1): 50.0}, 100)
    assert found is not None
    assert found.order == 0
    assert found.run**2 == pytest.approx(50)
    assert split({(i, i): 50.0 + i for i in range(5)}, 100) is None
    assert split({(0, 0): 50.0, (0, 1): 51.0, (1, 2): 50.0, (1, 3): 51.0}, 100) is None


def test_the_variance_figure_has_a_bar_a_component(tmp_path: Path) -> None:
    records = []
    for method, order, run in product(("pm", "ewc"), range(2), range(2)):
        value = fake.record(method, 0, n_tasks=2, counts=fake.flat(500 + 40 * order + 20 * run))
        value["coordinates"] |= {"class_order_seed": order, "run_seed": run}
        value["id"] += f"-{order}-{run}"
        records.append(value)
    figure = variance(*rows(tmp_path, records))
    (axes,) = figure.axes
    widths = [[bar.get_width() for bar in bars] for bars in axes.containers]
    # Means 51 and 55 (variance 8), runs 2 apart (variance 2): 8 - 2/2 and 2, in points squared.
    assert [[round(w**2, 6) for w in bars] for bars in widths[:2]] == [[7, 7], [2, 2]]
    assert [tick.get_text().split("  ")[1] for tick in axes.get_yticklabels()] == ["2 x 2"] * 2
    assert len({bar.get_hatch() for bars in axes.containers for bar in bars}) == 3


def test_records_whose_tasks_are_not_what_they_should_be_draw_nothing(tmp_path: Path) -> None:
    for i, tasks in enumerate((None, 7, [3], [{"onset": 3, "classes": 4}], [{}, {"scalars": {"alpha": 1.0}}])):
        value = fake.record("pm", n_tasks=2)
        value["tasks"] = tasks
        found, labels = rows(tmp_path / str(i), [json.loads(json.dumps(value))])
        assert "onset" in " ".join(draw([FigureConfig(name="onset")], found, labels).notes)


def test_a_line_is_named_at_its_end(tmp_path: Path) -> None:
    found, labels = rows(tmp_path, fake.grid(2, methods=("pm", "ewc")))
    figure = accuracy_over_tasks(found, labels)
    markers = {line.get_marker() for line in figure.axes[0].findobj(Line2D) if len(line.get_xdata()) == 1}
    assert {drawing.MARKERS[0], drawing.MARKERS[1]} <= markers
    mean = np.mean([row["a_last"] for row in found if row["label"] == "pm"])
    assert f"pm  {mean:.1f}" in [text.get_text() for text in figure.findobj(Text)]
