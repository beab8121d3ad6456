"""Records become rows: one row a cell, with the columns that other people's scripts rely on.

Nothing heavy is imported, because ``clmerge results`` must answer at once. A record that cannot be trusted is a row too
(status ``damaged`` and a reason), so that nothing silently drops out of a mean.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bench.data.scenario import DEFAULT
from bench.records import metrics
from bench.records.record import COORDINATES, Record, Standing
from bench.report.columns import BY_KEY, COLUMNS, METRICS, RESULTS
from bench.report.scenario_words import words_of

BLOCK = ("dataset", "n_tasks", "protocol", "eval_split", "scenario")
SPLITS = {
    "val": "Split val: the validation part is kept out of training and evaluated on.",
    "test_heldout": "Split test_heldout: the validation part is kept out of training, the test set is evaluated on.",
}
OF_METHOD = ("title", "method_status", "frozen", "keeps_images", "trainer", "rule")
MEASURED = ("done", "stale")
NOT_COUNTED = ("failed", "damaged", "outdated")
TROUBLES = (*NOT_COUNTED, "stale")
PLAIN = "plain+"  # the part of a variant that the method grammar lets one leave out
MARKS = {
    "reconstruction": ("†", "our reconstruction from the abstract; not the authors' method"),
    "oracle": ("°", "oracle: sees more than a continual learner may"),
    "imported": ("‡", "imported: measured by another harness, not by this one"),
}

Row = dict[str, Any]
NO_STANDINGS: dict[str, Standing] = {}


def rows(
    records: Iterable[Record], standings: Mapping[str, Standing] = NO_STANDINGS, eval_split: str = "test"
) -> list[Row]:
    """One row a cell with exactly :data:`bench.report.columns.RESULTS`, sorted by coordinates.

    Args:
        records: what :func:`bench.records.record.read_records` gave.
        standings: how done cells stand where they are not simply done (see :func:`bench.plan.standing.standings`);
            their status reads ``stale`` or ``outdated``, and what is outdated has no metrics.
        eval_split: the columns cannot tell validation from test, so only cells of one split are in one list.
            Damaged records whose coordinates are lost stay in.
    """
    wanted = (r for r in records if r["coordinates"].get("eval_split", eval_split) == eval_split)
    return sorted((_values(record, standings, RESULTS) for record in wanted), key=_by_coordinates)


def detailed_rows(records: Iterable[Record], standings: Mapping[str, Standing] = NO_STANDINGS) -> list[Row]:
    """The rows of every split with every column, and with what tables and figures need beyond them.

    Adds ``id, reason``, ``curve`` ([A_1..A_T], sample-weighted), ``scalars`` (what the rule logged, a dict a task; a
    value that was not finite is None), ``onset`` (loss and gradient norm at the first steps, a dict a task),
    ``task_sizes`` (classes of each task that was trained), ``test_images`` (behind A_last), ``predictions_sha256``,
    ``tuning`` (trials that were spent on the method and on what; empty where the protocol was not tuned) and
    :data:`OF_METHOD`. ``frozen`` marks a baseline whose trainer adapts nothing but the heads; ``trainer`` and ``rule``
    are dicts of key and options; ``head`` is the kind that the method brings, if any; ``classifier``
    that one or the protocol's.
    """
    keys = [column.key for column in COLUMNS]
    detailed = []
    for record in records:
        row = _values(record, standings, keys) | _of_method(record) | _of_tasks(record)
        row |= {
            "id": record["id"],
            "predictions_sha256": record.get("predictions_sha256"),
            "tuning": _tuning(record),
            "reason": record.get("reason") or standings.get(record["id"], Standing("")).why or None,
        }
        # Declared by the class; an option can make it keep none.
        row["keeps_images"] = row["keeps_images"] and row["carried_image_bytes"] != 0
        if row["status"] == "outdated":  # its numbers answer another question
            row["curve"] = None
        detailed.append(row)
    return sorted(detailed, key=_by_coordinates)


def labelled(rows: Iterable[Row]) -> list[Row]:
    """Copies of the rows with ``label``: the shortest of key, ``key@start`` and variant that is unique in its stream.

    The label ends with the mark of :data:`MARKS` where the method's status has one. A damaged record that has lost its
    method block takes :data:`OF_METHOD` from its repeats, so that no row loses its mark.
    """
    rows = [dict(row) for row in rows]
    for group in grouped(rows, ("method",)).values():
        whole = next((row for row in group if row["method_status"] is not None), group[0])
        for row in group:
            if row["method_status"] is None:
                row |= {name: whole[name] for name in OF_METHOD}
    for group in grouped(rows, (*BLOCK, "method")).values():
        variants = {row["variant"]: row["start"] for row in group}
        starts_differ = len(set(variants.values())) == len(variants)
        for row in group:
            if len(variants) == 1:
                label = row["method"].removeprefix(PLAIN)
            else:
                label = f"{row['method']}@{row['start']}" if starts_differ else row["variant"].removeprefix(PLAIN)
            row["label"] = f"{label}{mark(row)}"
    return rows


def mark(row: Row) -> str:
    """The dagger of a reconstruction, the ring of an oracle, or nothing."""
    return MARKS.get(row["method_status"], ("", ""))[0]


def footnotes(rows: Iterable[Row]) -> list[str]:
    """What the marks mean, for those that occur."""
    used = {row["method_status"] for row in rows}
    return [f"{sign} {text}" for status, (sign, text) in MARKS.items() if status in used]


def matches(selector: str, row: Row) -> bool:
    """Whether a name in a report file means this row: a method's key, ``key@start``, or the variant.

    As on the command line, plain training need not be spelled.
    """
    return selector in (
        row["method"],
        f"{row['method']}@{row['start']}",
        row["variant"],
        row["variant"].removeprefix(PLAIN),
    )


def stream_title(row: Mapping[str, Any]) -> str:
    """A stream in words; a split other than the test set is always named."""
    split = "" if row["eval_split"] == "test" else f", {row['eval_split']} split"
    kind = words_of(row.get("scenario", DEFAULT)).title
    return f"{row['dataset']}{kind and f', {kind}'}, T = {row['n_tasks']}, protocol {row['protocol']}{split}"


def grouped(rows: Iterable[Row], names: Sequence[str]) -> dict[tuple[Any, ...], list[Row]]:
    """Rows by the values of some columns, groups in order of first appearance."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in names), []).append(row)
    return groups


def repeats_of(selector: str, stream: Iterable[Row]) -> list[Row]:
    """The repeats of the one method that the selector means; empty when it means none or several."""
    chosen = [row for row in stream if matches(selector, row)]
    return chosen if len({row["variant"] for row in chosen}) == 1 else []


def measured_rows(rows: Iterable[Row], needs: str = "a_last") -> list[Row]:
    """The rows that count, with a value under ``needs``: never one that is outdated, failed or damaged."""
    return [row for row in rows if row["status"] in MEASURED and row.get(needs) not in (None, [], {})]


def _values(record: Record, standings: Mapping[str, Standing], keys: Iterable[str]) -> Row:
    known = standings.get(record["id"]) if record["status"] == "done" else None
    row: Row = {key: BY_KEY[key].of(record) for key in keys}
    if known:
        row["status"] = known.status
    if row["status"] == "outdated":
        row |= {key: None for key in METRICS if key in row}
    return row


def _of_method(record: Record) -> Row:
    method = record.get("method") or {}
    trainer, rule, data = (_dict(method.get(name)) for name in ("trainer", "rule", "data"))
    return {
        "title": method.get("title"),
        "method_status": method.get("status"),
        "frozen": method.get("status") == "baseline" and trainer.get("adapt") is False,
        "keeps_images": data.get("keeps_images") is True,
        "trainer": trainer | {"data": data.get("training")} if trainer else None,
        "rule": rule or None,
        "head": method.get("head"),
        "classifier": method.get("head") or _dict(_dict(record.get("protocol")).get("head")).get("kind", "linear"),
    }


def _of_tasks(record: Record) -> Row:
    tasks = [_dict(task) for task in _list(record.get("tasks"))]
    done = record["status"] == "done"
    return {
        "scalars": [_finite(task.get("scalars")) for task in tasks],
        "onset": [{name: _finite(at) for name, at in _dict(task.get("onset")).items()} for task in tasks],
        "task_sizes": [len(_list(task.get("classes"))) for task in tasks],
        "test_images": sum(total for _, total in record["counts"][-1]) if done else None,
        "curve": metrics.curve(record["counts"]) if done else None,
    }


def _tuning(record: Record) -> dict[str, Any]:
    protocol = _dict(record.get("protocol"))
    tuning = _dict(protocol.get("tuning"))
    return tuning and tuning | {"trials": tuning["trials"] if protocol.get("per_method") else 0}


def _finite(values: Any) -> dict[str, float | None]:
    """Numbers by name; what was logged as not a number, or as infinite, is undefined."""
    return {
        name: value if type(value) in (int, float) and math.isfinite(value) else None
        for name, value in _dict(values).items()
    }


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _by_coordinates(row: Row) -> tuple[tuple[int, Any], ...]:
    # None (damaged records) sorts last; integers stay integers, so that 20 tasks come after 5.
    return tuple((1, "") if row[name] is None else (0, row[name]) for name in COORDINATES)
