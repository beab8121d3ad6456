"""How much is left to gain: after every task, the accuracy of an oracle minus that of each method, paired over repeats.

Every method merges along its own trajectory, so this regret is of whole streams. What an oracle gains in one merge, on
the same h and D, is what its rule logs: validation accuracy at the coefficients it chose, minus that at 1/t. The images
that it chose on are the ones that judge, so that gain is never negative and somewhat flattering.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from bench.common.csv_text import csv_text
from bench.config.schema import Section
from bench.report.rows import BLOCK, SPLITS, Row, footnotes, grouped, measured_rows, repeats_of, stream_title
from bench.report.section import Document, TableSection
from bench.report.tables import mean_interval

ONE_STEP = ("validation_accuracy", "validation_accuracy_average")
INTERVAL = "mean and 95 % t interval over repeats"


class RegretConfig(Section):
    """The ``regret`` key of a report."""

    oracle: str  #: selector of the reference
    methods: list[str] = Field(min_length=1)  #: selectors of what is measured against it, in the order of the rows


@dataclass(frozen=True)
class Gains:
    """One method's differences in points: ``by_t[t]`` and ``overall`` (each repeat's mean over t) list the repeats."""

    stream: Row
    kind: str  #: "regret", or "one step" of an oracle's own merges
    label: str
    by_t: dict[int, list[float]]
    overall: list[float]

    def columns(self) -> dict[str, list[float]]:
        """The differences under the heads of the table's columns."""
        return {f"t = {t}": values for t, values in self.by_t.items()} | {"mean": self.overall}


@dataclass(frozen=True)
class Regret:
    """All methods of a report, with what could not be compared."""

    oracle: str
    lines: list[Gains]
    notes: list[str]
    marks: list[str]

    def document(self) -> Document:
        """Of each stream, the regret and the gain of a single merge."""
        titles = {
            "regret": f"A_t of {self.oracle} minus A_t of the method, points; {INTERVAL}",
            "one step": f"On the same h and D: validation accuracy as chosen minus at 1/t, points; {INTERVAL}",
        }
        streams: dict[str, list[Gains]] = {}
        for line in self.lines:
            streams.setdefault(stream_title(line.stream), []).append(line)
        sections = []
        for stream, lines in streams.items():
            sections.append(TableSection(stream))
            for kind, title in titles.items():
                of_kind = [line for line in lines if line.kind == kind]
                sections += [_table(title, of_kind)] if of_kind else []
        return Document("How much is left to gain", sections, [*self.notes, *self.marks])

    def csv(self) -> str:
        """One line a method, t (``mean``: over all t) and stream, unrounded."""
        rows: list[dict[str, Any]] = []
        for line in self.lines:
            for head, values in line.columns().items():
                mean, low, high = mean_interval(values)
                place = {name: line.stream[name] for name in BLOCK} | {"kind": line.kind, "oracle": self.oracle}
                numbers = {"n": len(values), "mean": mean, "low": low, "high": high}
                rows.append(place | {"method": line.label, "t": head.removeprefix("t = ")} | numbers)
        return csv_text(rows, (*BLOCK, "kind", "oracle", "method", "t", "n", "mean", "low", "high"))


def evaluate(config: RegretConfig, rows: Sequence[Row]) -> Regret:
    """What the labelled rows can answer, and notes on the rest."""
    measured = measured_rows(rows, "curve")
    lines: list[Gains] = []
    notes: list[str] = []
    for stream in grouped(measured, BLOCK).values():
        title = stream_title(stream[0])
        oracle = repeats_of(config.oracle, stream)
        for selector in config.methods:
            method = repeats_of(selector, stream)
            line = _regret(oracle, method) if oracle and method else None
            if line is not None:
                lines.append(line)
            elif selector != config.oracle:
                notes.append(f"{selector} on {title}: not run, no common repeat or task, or name not unique.")
        lines += [line for repeats in grouped(stream, ("variant",)).values() if (line := _one_step(repeats))]
    notes += [SPLITS[split] for (split,) in grouped(measured, ("eval_split",)) if split in SPLITS]
    if any(row["eval_split"] == "test" for row in measured):
        notes.append("Split test: the oracle's validation images were trained on; use test_heldout for a clean choice.")
    notes.append(
        "Each method merges along its own trajectory, so its regret is of the whole stream and may be negative: an "
        "oracle chooses one merge at a time. Gains on the same h and D are measured on the images that chose."
    )
    return Regret(config.oracle, lines, notes, footnotes(line.stream for line in lines))


def _regret(oracle: Sequence[Row], method: Sequence[Row]) -> Gains | None:
    """A_t(oracle) - A_t(method), t = 2..T, over the repeats that both have."""
    if method[0]["variant"] == oracle[0]["variant"]:
        return None
    best, reached = ({(r["class_order_seed"], r["run_seed"]): r["curve"] for r in rows} for rows in (oracle, method))
    common = sorted(best.keys() & reached.keys())
    differences = [[_minus(a, b) for a, b in zip(best[r], reached[r], strict=True)] for r in common]
    return _gains(method[0], "regret", [of_repeat[1:] for of_repeat in differences])


def _one_step(repeats: Sequence[Row]) -> Gains | None:
    """What an oracle's coefficients gain over 1/t in each of its own merges."""
    chosen, average = ONE_STEP
    gains = [[_minus(logged.get(chosen), logged.get(average)) for logged in row["scalars"][1:]] for row in repeats]
    percent = [[None if gain is None else 100 * gain for gain in of_repeat] for of_repeat in gains]
    return _gains(repeats[0], "one step", percent)


def _minus(a: float | None, b: float | None) -> float | None:
    """Undefined where either is: not evaluated, not logged, or logged as no number."""
    return None if a is None or b is None else a - b


def _gains(row: Row, kind: str, repeats: Sequence[Sequence[float | None]]) -> Gains | None:
    """The t that every repeat knows; ``repeats`` list the differences from t = 2 on."""
    by_t = {
        t: [value for value in values if value is not None]
        for t, values in enumerate(zip(*repeats, strict=False), 2)
        if None not in values
    }
    if not by_t:
        return None
    overall = [sum(values) / len(by_t) for values in zip(*by_t.values(), strict=True)]
    return Gains(row, kind, row["label"], by_t, overall)


def _table(title: str, lines: Sequence[Gains]) -> TableSection:
    columns = list(dict.fromkeys(head for line in lines for head in line.columns()))
    columns.append(columns.pop(columns.index("mean")))
    heads = [("Method",), ("n",), *((column,) for column in columns)]
    rows = [
        [line.label, str(len(line.overall)), *(_interval(line.columns().get(column)) for column in columns)]
        for line in lines
    ]
    return TableSection(title, heads, rows, level=3)


def _interval(values: Sequence[float] | None) -> str:
    if values is None:
        return "-"
    mean, low, high = mean_interval(values)
    return f"{mean:+.1f}" if low is None else f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"


def figure(regret: Regret) -> dict[str, bytes]:
    """Regret over t, a panel a stream, as ``{"png": ..., "pdf": ...}``; ``{}`` when nothing could be compared."""
    lines = [line for line in regret.lines if line.kind == "regret"]
    if not lines:
        return {}

    import matplotlib
    import seaborn as sns
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    from bench.report.figures.drawing import MARKERS, rendered

    streams = list(grouped(({"line": line, **line.stream} for line in lines), BLOCK).values())
    labels = list(dict.fromkeys(line.label for line in lines))
    colours = sns.color_palette("colorblind")
    with sns.axes_style("whitegrid"), matplotlib.rc_context({"pdf.fonttype": 42, "font.size": 9}):
        drawn = Figure(figsize=(3.6 * len(streams) + 1.7, 3.1), layout="constrained")
        panels = drawn.subplots(1, len(streams), squeeze=False, sharey=True)[0]
        for axes, stream in zip(panels, streams, strict=True):
            axes.axhline(0, color="black", linewidth=0.8)
            for entry in stream:
                line: Gains = entry["line"]
                i = labels.index(line.label)
                aside = 0.6 * ((i + 0.5) / len(labels) - 0.5)  # side by side, so that intervals do not cover each other
                intervals = [mean_interval(values) for values in line.by_t.values()]
                half = [0.0 if high is None else high - mean for mean, _, high in intervals]
                axes.errorbar(
                    [t + aside for t in line.by_t], [mean for mean, _, _ in intervals],
                    yerr=half, label=line.label, color=colours[i % len(colours)],
                    marker=MARKERS[i % len(MARKERS)], markersize=4.5, linewidth=0.9, elinewidth=0.8, capsize=1.5,
                )  # fmt: skip
            axes.set_title(stream_title(stream[0]), fontsize=8)
            axes.set_xlabel("tasks learnt, t")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.grid(visible=False, axis="x")
        panels[0].set_ylabel(f"$A_t$({regret.oracle}) − $A_t$(method), points")
        handles = dict(pair[::-1] for axes in panels for pair in zip(*axes.get_legend_handles_labels(), strict=True))
        drawn.legend(handles.values(), handles.keys(), loc="outside right upper", fontsize=7.5, frameon=False)
        n = sorted({len(line.overall) for line in lines})
        repeats = str(n[0]) if len(n) == 1 else f"{n[0]} to {n[-1]}"
        caption = f"Mean and 95 % t interval over n = {repeats} repeats. Above 0: the oracle is better."
        drawn.supxlabel("\n".join([caption, *regret.marks]), fontsize=6.5, x=0.01, ha="left")
        return rendered(drawn)
