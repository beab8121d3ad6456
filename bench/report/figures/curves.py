"""Lines over tasks: accuracy after each, or against how many there are; merging coefficients; how a task begins.

One panel a stream, one line a method.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from bench.report.figures.drawing import (
    SPREAD,
    LeftOut,
    LinePanel,
    Look,
    caption,
    line_panels,
    looks,
    measured,
)
from bench.report.rows import BLOCK, Row, grouped, stream_title

TASKS = "tasks learnt, t"
EQUAL_SHARES = "1/t"
ONSET = {"loss": "loss of the new task (nats)", "grad_norm": "gradient norm"}


def accuracy_over_tasks(rows: Sequence[Row], labels: Sequence[str]) -> Any:
    """A_1..A_T (sample-weighted, percent). What is evaluated only at the end (joint training) is a marker there."""
    shown = measured(rows, "curve")
    panels = [
        LinePanel(
            stream_title(stream[0]),
            TASKS,
            "accuracy over seen classes, $A_t$ (%)",
            _by_label(stream, [list(enumerate(row["curve"], start=1)) for row in stream]),
        )
        for stream in grouped(shown, BLOCK).values()
    ]
    return line_panels(panels, looks(labels), caption(f"{SPREAD} {{n}}.", shown))


def accuracy_against_tasks(rows: Sequence[Row], labels: Sequence[str]) -> Any:
    """A_T against T, a panel a dataset that was cut into several numbers of tasks."""
    longest: dict[str, str] = {}
    for row in rows:  # a label is as short as its stream allows
        longest[row["variant"]] = max(longest.get(row["variant"], ""), row["label"], key=len)
    known = [row | {"label": longest[row["variant"]]} for row in measured(rows, "a_last")]
    panels, used, once = [], [], []
    for of_dataset in grouped(known, ("dataset", "protocol", "eval_split")).values():
        counts = {key: {row["n_tasks"] for row in of} for (key,), of in grouped(of_dataset, ("label",)).items()}
        kept = [row for row in of_dataset if len(counts[row["label"]]) > 1]
        if kept:
            title = stream_title(kept[0]).replace(f", T = {kept[0]['n_tasks']}", "", 1)
            series = _by_label(kept, [[(row["n_tasks"], row["a_last"])] for row in kept])
            ticks = sorted({row["n_tasks"] for row in kept})
            panels.append(LinePanel(title, "number of tasks, T", "$A_{last}$ (%)", series, ticks))
            used += kept
            once += [label for label, several in counts.items() if len(several) == 1]
    if not panels:
        raise LeftOut("no method was run with more than one number of tasks")
    text = f"{SPREAD} {{n}}." + (f" At one T only, so not shown: {', '.join(dict.fromkeys(once))}." if once else "")
    names = dict.fromkeys([*(label for label in labels if label in longest.values()), *longest.values()])
    return line_panels(panels, looks(list(names)), caption(text, used))


def alpha(rows: Sequence[Row], labels: Sequence[str]) -> Any:
    """The coefficient on the newest task vector that rules logged as ``alpha``, against 1/t, from task 2 on."""
    logged = [row for row in measured(rows, "scalars") if any("alpha" in task for task in row["scalars"][1:])]
    points = {row["id"]: [(t, task["alpha"]) for t, task in enumerate(row["scalars"], 1) if t > 1 and "alpha" in task]
              for row in logged}  # fmt: skip
    if not any(value is not None for repeat in points.values() for _, value in repeat):
        raise LeftOut("no rule logged a coefficient alpha")
    style = looks(labels) | {EQUAL_SHARES: Look("black", ".", (1, 1))}
    panels = []
    for stream in grouped(logged, BLOCK).values():
        series = {EQUAL_SHARES: [(t, 1 / t) for t in range(2, stream[0]["n_tasks"] + 1)]}
        series |= _by_label(stream, [points[row["id"]] for row in stream])
        panels.append(LinePanel(stream_title(stream[0]), TASKS, r"coefficient $\alpha_t$", series, digits=2))
    text = f"{SPREAD} {{n}}. Each method's coefficients are those on its own trajectory. Small dots: 1/t."
    return line_panels(panels, style, caption(text + _undefined(logged, points.values()), logged))


def onset(rows: Sequence[Row], labels: Sequence[str]) -> Any:
    """Loss and gradient norm of the new task at its first recorded steps, over tasks.

    Methods whose training is the same to the last bit are one line, named after the first of them. What is trained on
    all tasks at once has no onset.
    """
    begun = [row for row in measured(rows, "onset") if _begins(row)]
    panels, same, every = [], [], []
    for stream in grouped(begun, BLOCK).values():
        alike = _different(stream)
        where = f"{stream[0]['dataset']}, T = {stream[0]['n_tasks']}"
        same += [f"{first} = {', '.join(others)} ({where})" for first, others in alike.items() if others]
        shown = [row for row in stream if row["label"] in alike]
        # A short task ends before the later steps.
        steps = set.intersection(*(set(task["loss"]) for row in shown for task in row["onset"]))
        for step in sorted(steps, key=int):
            for quantity, ylabel in ONSET.items():
                points = [[(t, task[quantity][step]) for t, task in enumerate(row["onset"], 1)] for row in shown]
                every += [(row, of_row) for row, of_row in zip(shown, points, strict=True)]
                title = f"{stream_title(stream[0])}\nafter {step} steps"
                panels.append(LinePanel(title, "task, t", ylabel, _by_label(shown, points), digits=2))
    panels = [panel for panel in panels if panel.series]
    if not panels:
        raise LeftOut("no cell recorded loss and gradient at the first steps of its tasks")
    text = f"{SPREAD} {{n}}. The heads of a new task start the same in all methods."
    if same:
        text += f" Trained alike, one line: {'; '.join(same)}."
    text += _undefined([row for row, _ in every], [points for _, points in every])
    return line_panels(panels, looks(labels), caption(text, begun))


def _undefined(rows: Sequence[Row], points: Iterable[Sequence[tuple[float, float | None]]]) -> str:
    """The caption's sentence on points that are left out because what was recorded is no number."""
    lost = {row["label"]: None for row, of_row in zip(rows, points, strict=True) if None in dict(of_row).values()}
    return f" Not a number, so without these points: {', '.join(lost)}." if lost else ""


def _begins(row: Row) -> bool:
    """Whether every task of the stream has both quantities at the same steps."""
    steps = [[task.get(name, {}).keys() for name in ONSET] for task in row["onset"]]
    return len(steps) == row["n_tasks"] > 1 and all(loss and loss == norm for loss, norm in steps)


def _by_label(rows: Sequence[Row], points: Sequence[Sequence[tuple[float, float | None]]]) -> dict[str, list[Any]]:
    """The known points of all repeats of a label together."""
    series: dict[str, list[Any]] = {}
    for row, of_row in zip(rows, points, strict=True):
        series.setdefault(row["label"], []).extend((x, y) for x, y in of_row if y is not None)
    return {label: known for label, known in series.items() if known}


def _different(stream: Sequence[Row]) -> dict[str, list[str]]:
    """Of labels with equal onsets in all repeats, the first, with the others."""
    firsts: dict[str, str] = {}
    kept: dict[str, list[str]] = {}
    for (label,), repeats in grouped(stream, ("label",)).items():
        what = repr(sorted((row["class_order_seed"], row["run_seed"], repr(row["onset"])) for row in repeats))
        first = firsts.setdefault(what, label)
        kept.setdefault(first, []).extend([label] if first != label else [])
    return kept
