"""Figures by name, as a report lists them: rows go in, PNG and PDF come out, the same bytes every time.

A figure whose data is not there is left out, and a note says why.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import field_validator, model_validator

from bench.common.errors import unknown
from bench.config.schema import Section
from bench.report.figures import confusion, ladder, losses, variance
from bench.report.figures.curves import accuracy_against_tasks, accuracy_over_tasks, alpha, onset
from bench.report.figures.drawing import LeftOut, paper_style, rendered
from bench.report.figures.scatter import costs, stability
from bench.report.rows import Row, matches


@dataclass(frozen=True)
class Kind:
    """A figure that a report can ask for; ``plot(rows, labels)`` gives a matplotlib figure or raises ``LeftOut``."""

    title: str
    plot: Callable[[Sequence[Row], Sequence[str]], Any]


KINDS = {
    "accuracy_over_tasks": Kind("Accuracy over tasks", accuracy_over_tasks),
    "accuracy_against_tasks": Kind("Accuracy against the number of tasks", accuracy_against_tasks),
    "losses": Kind("Learning accuracy, merge drop and later drift", losses.losses),
    "ladder": Kind("From the frozen backbone to joint training", ladder.ladder),
    "stability": Kind("Stability against plasticity", stability),
    "costs": Kind("Accuracy against carried bytes and seconds", costs),
    "confusion": Kind("Which task's head answers for which task", confusion.confusion),
    "alpha": Kind("Merging coefficients over tasks", alpha),
    "onset": Kind("Loss and gradient norm as a task begins", onset),
    "variance": Kind("Variance by class order, run and test sampling", variance.variance),
}


MANY = 1000  #: cells from which on figures are drawn side by side


class FigureConfig(Section):
    """One entry of a report's ``figures``: a name, or a name and what it shows; an empty list: all."""

    name: str
    methods: list[str] = []  #: selectors
    datasets: list[str] = []
    tasks: list[int] = []  #: numbers of tasks

    def shows(self, row: Row) -> bool:
        """Whether the row is in the figure."""
        return (
            (not self.methods or any(matches(name, row) for name in self.methods))
            and (not self.datasets or row["dataset"] in self.datasets)
            and (not self.tasks or row["n_tasks"] in self.tasks)
        )

    @model_validator(mode="before")
    @classmethod
    def _bare(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in KINDS:
            raise ValueError(str(unknown("figure", name, KINDS)))
        return name


@dataclass(frozen=True)
class Figures:
    """What could be drawn, ``{name: {"png": ..., "pdf": ...}}``, and why the rest was not."""

    drawn: dict[str, dict[str, bytes]]
    notes: list[str]


def draw(wanted: Sequence[FigureConfig], rows: Sequence[Row], labels: Sequence[str]) -> Figures:
    """The figures of labelled rows.

    Args:
        wanted: in the order of the report.
        rows: as :func:`bench.report.build.build_report` gives them.
        labels: in the order of the tables; others follow. A label looks the same in every figure that shows all
            methods.
    """
    from joblib import Parallel, cpu_count, delayed  # type: ignore[import-untyped]

    # Processes take longer to start than a few hundred cells to draw.
    jobs = min(cpu_count(), len(wanted)) if len(rows) > MANY else 1
    tasks = [(config, [row for row in rows if config.shows(row)]) for config in wanted]
    made = Parallel(n_jobs=jobs)(delayed(_draw)(config.name, shown, labels) for config, shown in tasks) if tasks else []
    named = list(zip((config.name for config in wanted), made, strict=True))
    return Figures(
        {name: files for name, files in named if not isinstance(files, str)},
        [f"Figure {name} is left out: {why}." for name, why in named if isinstance(why, str)],
    )


def _draw(name: str, rows: Sequence[Row], labels: Sequence[str]) -> dict[str, bytes] | str:
    """One figure, or why it is left out."""
    shown = dict.fromkeys(row["label"] for row in rows)
    order = dict.fromkeys([*(label for label in labels if label in shown), *shown])
    try:
        with paper_style():
            return rendered(KINDS[name].plot(rows, list(order)))
    except LeftOut as why:
        return str(why)
