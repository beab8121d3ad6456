"""Every column of tables, CSV files, pages and papers: its name, how it is printed, and how it follows from a record.

To add one: a :class:`Column` in :data:`COLUMNS` (and its computation, if that is new). It is then in ``table.csv``, may
be asked for in a report and a paper's table, is named by ``clmerge list columns``, and stands wherever ``shown`` says.
Torch-free, and light: ``clmerge results`` must answer at once.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from bench.common.errors import unknown
from bench.data.scenario import DEFAULT
from bench.records import metrics

Kind = Literal["coordinate", "state", "metric", "cost"]
#: results: ``clmerge results``; table: a report that names no columns; terminal: first where room is short; page: its
#: list of cells
ShownOn = Literal["results", "table", "terminal", "page"]
Unit = Literal["", "%", "points", "s", "MB", "bytes"]
Summary = tuple[float | None, float | None]  #: mean and sample standard deviation over repeats; None where undefined

#: of ``clmerge results``, in the order that other people's scripts rely on; other columns follow it
CONTRACT = (
    "dataset", "n_tasks", "protocol", "method", "variant", "start", "class_order_seed", "run_seed", "status", "a_last",
    "avg_acc", "forgetting", "a_last_taskmean", "avg_acc_taskmean", "forgetting_taskmean", "a_last_taskaware",
    "learn_acc", "merge_drop", "train_s_alone", "train_s_spent", "merge_s", "eval_s", "wall_s", "opt_steps", "peak_mb",
    "carried_bytes", "digest", "scenario",
)  # fmt: skip


@dataclass(frozen=True)
class Column:
    """One value of a cell.

    Attributes:
        of: its value in a whole record, ``None`` where it is undefined (never 0).
        about: what it is, for ``clmerge list columns``.
        better: which values are; ``None`` where it ranks nothing (forgetting: what learns nothing forgets least).
        short: the heading where columns must be narrow; empty: ``heading``.
        beside: the column that must stand beside it.
    """

    key: str
    heading: str
    of: Callable[[Mapping[str, Any]], Any]
    about: str = ""
    kind: Kind = "metric"
    shown: frozenset[ShownOn] = frozenset()
    unit: Unit = ""
    digits: int = 1
    better: Literal["higher", "lower"] | None = None
    short: str = ""
    beside: str = ""

    @property
    def narrow(self) -> str:
        """The heading over a narrow column."""
        return self.short or self.heading

    def described(self) -> dict[str, Any]:
        """For ``clmerge list columns``."""
        return {
            "key": self.key,
            "heading": self.heading,
            "unit": self.unit,
            "better": self.better or "",
            "shown": sorted(self.shown),
            "about": self.about,
        }

    def text(self, summary: Summary) -> str:
        """Mean ± sd as tables print it; a hyphen where undefined."""
        mean, sd = summary
        if mean is None:
            return "-"
        if self.unit == "bytes":
            from rich.filesize import decimal

            return decimal(round(mean))
        # Adding 0.0 turns the -0.0 that rounding leaves into 0.0.
        text = f"{round(mean, self.digits) + 0.0:.{self.digits}f}"
        return text if sd is None else f"{text} ± {sd:.{self.digits}f}"


def mean_sd(values: Sequence[float | None]) -> Summary:
    """Mean and sample sd; undefined where any repeat's value is, and no sd of a single repeat."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None, None
    return statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None


# ---- how values follow from a record -----------------------------------------------------------------------------
def _coordinate(key: str) -> Callable[[Mapping[str, Any]], Any]:
    return lambda record: record["coordinates"].get(key)


def _scenario(record: Mapping[str, Any]) -> str | None:
    """Only what is not the default is recorded."""
    return record["coordinates"].get("scenario", DEFAULT) if record["coordinates"] else None


def _total(key: str) -> Callable[[Mapping[str, Any]], Any]:
    return lambda record: (record.get("totals") or {}).get(key)


def _counted(
    metric: Callable[..., float | None], counts: str = "counts", **options: Any
) -> Callable[[Mapping[str, Any]], float | None]:
    """A metric of a done cell's counts; undefined for any other cell. They have passed :func:`metrics.check`."""

    def value(record: Mapping[str, Any]) -> float | None:
        measured = record.get("status") == "done" and record.get("counts") and record["counts"][-1] is not None
        return metric(record[counts], **options) if measured and record.get(counts) else None

    return value


def _merge_drop(record: Mapping[str, Any]) -> float | None:
    """The counts before merging are of the heads as trained, so they say nothing where others were fitted later."""
    kind = ((record.get("protocol") or {}).get("head") or {}).get("kind", "linear")
    before = (record.get("before_merge") or ()) if kind in ("linear", "zero_shot") else ()
    return _counted(lambda counts: metrics.merge_drop(counts, before))(record)


def _seconds(record: Mapping[str, Any]) -> float | None:
    train, merge = _total("train_s_alone")(record), _total("merge_s")(record)
    return None if train is None or merge is None else train + merge


def _image_bytes(record: Mapping[str, Any]) -> int | None:
    totals = record.get("totals") or {}
    return totals.get("carried_image_bytes", 0) if totals else None


# ---- the columns, in the order of print --------------------------------------------------------------------------
_RESULTS, _LISTED = frozenset[ShownOn]({"results"}), frozenset[ShownOn]({"results", "page"})
_HEADLINE = frozenset[ShownOn]({"results", "table", "terminal"})
_place = partial(Column, kind="coordinate")
_percent = partial(Column, unit="%", better="higher")
_points = partial(Column, unit="points")
_cost = partial(Column, kind="cost", better="lower")
_forgetting = partial(_points, beside="learn_acc")

COLUMNS: tuple[Column, ...] = (
    *(
        _place(key, heading, _coordinate(key), shown=shown)
        for key, heading, shown in (
            ("dataset", "Dataset", _LISTED), ("n_tasks", "T", _LISTED), ("protocol", "Protocol", _LISTED),
            ("eval_split", "Split", frozenset[ShownOn]({"page"})), ("method", "Method", _LISTED),
            ("variant", "Variant", _RESULTS), ("start", "Start", _RESULTS), ("class_order_seed", "Order", _LISTED),
            ("run_seed", "Run", _LISTED),
        )
    ),
    Column("status", "Status", lambda record: record["status"], kind="state", shown=_LISTED),
    _percent("a_last", "A_last", _counted(metrics.a_last), "accuracy over all tasks after the last one",
             shown=_HEADLINE | {"page"}),
    _percent("avg_acc", "Average incremental accuracy", _counted(metrics.avg_acc), "mean over t of A_t",
             shown=_HEADLINE, short="A_avg"),
    _percent("learn_acc", "Learning accuracy", _counted(metrics.learn_acc), "mean over i of a[i,i]",
             shown=_HEADLINE | {"page"}, short="A_learn"),
    _points("merge_drop", "Merge drop", _merge_drop, "mean over i of before_i - a[i,i]", shown=_RESULTS),
    _points("drift", "Later drift", _counted(metrics.drift), "mean over i of a[i,i] - a[T,i]"),
    _forgetting("forgetting", "Forgetting", _counted(metrics.forgetting), "mean over i < T of max_t a[t,i] - a[T,i]",
                shown=_HEADLINE, short="F"),
    _forgetting("forgetting_taskaware", "Forgetting, task-aware", _counted(metrics.forgetting, "counts_taskaware"),
                "forgetting of accuracies with the task given", shown=frozenset({"table"}), short="F_aware"),
    _percent("a_last_taskaware", "A_last, task-aware", _counted(metrics.a_last, "counts_taskaware"),
             "A_last with the task given", shown=_RESULTS, short="A_aware"),
    _points("bwt", "Backward transfer", _counted(metrics.bwt), "mean over i < T of a[T,i] - a[i,i]"),
    _percent("a_last_taskmean", "A_last, task mean", _counted(metrics.a_last, by="tasks"),
             "mean of tasks, not of images", shown=_RESULTS),
    _percent("avg_acc_taskmean", "Average incremental accuracy, task mean", _counted(metrics.avg_acc, by="tasks"),
             "mean of tasks, not of images", shown=_RESULTS),
    _forgetting("forgetting_taskmean", "Forgetting, task mean", _counted(metrics.forgetting, by="tasks"),
                "mean of tasks, not of images", shown=_RESULTS),
    _forgetting("forgetting_max_incl", "Forgetting, maximum over all t", _counted(metrics.forgetting_max_incl),
                "with t = T in the maximum, as LAMDA-PILOT and Mammoth have it (task mean)"),
    _cost("seconds", "Time (s)", _seconds, "training alone plus merging", unit="s",
          shown=frozenset({"table", "terminal", "page"})),
    _cost("peak_mb", "Peak memory (MB)", _total("peak_mb"), "of the process or the device", unit="MB", shown=_RESULTS),
    _cost("carried_bytes", "Carried", _total("carried_bytes"),
          "what crosses a task boundary beyond pretrained and served weights and heads", unit="bytes", shown=_HEADLINE),
    _cost("carried_image_bytes", "of it images", _image_bytes, "images of past tasks in it", unit="bytes"),
    _cost("train_s_alone", "Training, alone (s)", _total("train_s_alone"), "as if nothing had been shared", unit="s",
          shown=_RESULTS),
    _cost("train_s_spent", "Training, spent (s)", _total("train_s_spent"), "what was not taken from the cache",
          unit="s", shown=_RESULTS),
    _cost("merge_s", "Merging (s)", _total("merge_s"), "summed over tasks", unit="s", shown=_RESULTS),
    _cost("eval_s", "Evaluation (s)", _total("eval_s"), "summed over tasks", unit="s", shown=_RESULTS),
    _cost("wall_s", "Wall clock (s)", _total("wall_s"), "of the whole cell", unit="s", shown=_RESULTS),
    _cost("opt_steps", "Optimiser steps", _total("opt_steps"), "of training, and of merging where it takes any",
          digits=0, shown=_RESULTS),
    Column("digest", "Digest", lambda record: record.get("digest"), "of what was served last", kind="state",
           shown=_RESULTS),
    _place("scenario", "Scenario", _scenario, "what the tasks of the stream are", shown=_RESULTS),
)  # fmt: skip
BY_KEY = {column.key: column for column in COLUMNS}
SUMMARISED = tuple(column for column in COLUMNS if column.kind in ("metric", "cost"))  #: what has a mean over repeats
METRICS = tuple(column.key for column in COLUMNS if column.kind == "metric")


def shown_on(place: ShownOn) -> list[Column]:
    """The columns of a place, in order of print; those of ``clmerge results`` in the order of :data:`CONTRACT`."""
    columns = [column for column in COLUMNS if place in column.shown]
    if place == "results":
        columns.sort(key=lambda column: CONTRACT.index(column.key) if column.key in CONTRACT else len(CONTRACT))
    return columns


RESULTS = tuple(column.key for column in shown_on("results"))
BYTES = tuple(column.key for column in COLUMNS if column.unit == "bytes")


def check_columns(names: Iterable[str], what: str = "column") -> None:
    """Raise ``ValueError`` where a table cannot have these columns: an unknown one, or one without its neighbour."""
    names = list(names)
    keys = [column.key for column in SUMMARISED]
    for name in names:
        if name not in keys:
            raise ValueError(str(unknown(what, name, keys)))
        beside = BY_KEY[name].beside
        if beside and beside not in names:
            raise ValueError(f"{name} is shown only beside {beside}, because what learns nothing forgets least")
