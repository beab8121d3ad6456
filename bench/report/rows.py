"""Records become rows: one row a cell, with the columns that other people's scripts rely on.

Nothing heavy is imported, because ``clmerge results`` must answer at once. A record that cannot be trusted is a row too
(status ``damaged`` and a reason), so that nothing silently drops out of a mean.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from bench.common.files import write_atomic
from bench.records import metrics
from bench.records.record import COORDINATES, Record, Standing

COSTS = ("train_s_alone", "train_s_spent", "merge_s", "eval_s", "wall_s", "opt_steps", "peak_mb", "carried_bytes")
BLOCK = ("dataset", "n_tasks", "protocol", "eval_split")
SPLITS = {
    "val": "Split val: the validation part is kept out of training and evaluated on.",
    "test_heldout": "Split test_heldout: the validation part is kept out of training, the test set is evaluated on.",
}
OF_METHOD = ("title", "method_status", "frozen", "keeps_images", "trainer", "rule")
MEASURED = ("done", "stale")
NOT_COUNTED = ("failed", "damaged", "outdated")
TROUBLES = (*NOT_COUNTED, "stale")
PLAIN = "plain+"  # the part of a variant that the method grammar lets one leave out
COLUMNS = (*COORDINATES, "status", *metrics.COLUMNS, *COSTS, "digest")
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
    """One row a cell with exactly ``COLUMNS``, sorted by coordinates.

    Args:
        records: what :func:`bench.records.record.read_records` gave.
        standings: how done cells stand where they are not simply done (see :func:`bench.plan.standing.standings`);
        their
            status reads ``stale`` or ``outdated``.
        eval_split: the columns cannot tell validation from test, so only cells of one split are in one list.
            Damaged records whose coordinates are lost stay in.
    """
    wanted = (r for r in records if r["coordinates"].get("eval_split", eval_split) == eval_split)
    return sorted((_row(record, standings) for record in wanted), key=_by_coordinates)


def detailed_rows(records: Iterable[Record], standings: Mapping[str, Standing] = NO_STANDINGS) -> list[Row]:
    """The rows of every split with what tables and figures need beyond the contract.

    Adds ``id, eval_split, reason, seconds`` (training alone plus merging), ``carried_image_bytes``, ``scalars`` (what
    the rule logged, a dict a task), ``onset`` (loss and gradient norm at the first steps, a dict a task),
    ``task_sizes`` (classes of each task that was trained), ``test_images`` (behind A_last), ``predictions_sha256``,
    ``tuning`` (trials that were spent on the method and on what; empty where the protocol was not tuned),
    :data:`OF_METHOD` and the values of :func:`bench.records.metrics.more`. ``frozen`` marks a baseline whose trainer
    adapts nothing but the heads; ``trainer`` and ``rule`` are dicts of key and options; ``head`` is the kind that the
    method brings, if any.
    """
    out = []
    for record in records:
        method, totals = record.get("method") or {}, record.get("totals") or {}
        train, merge = totals.get("train_s_alone"), totals.get("merge_s")
        trainer, rule, data = (_dict(method.get(name)) for name in ("trainer", "rule", "data"))
        image_bytes = totals.get("carried_image_bytes", 0) if totals else None
        out.append(
            _row(record, standings)
            | {
                "id": record["id"],
                "eval_split": record["coordinates"].get("eval_split"),
                "title": method.get("title"),
                "method_status": method.get("status"),
                "frozen": method.get("status") == "baseline" and trainer.get("adapt") is False,
                # Declared by the class; an option can make it keep none.
                "keeps_images": data.get("keeps_images") is True and image_bytes != 0,
                "trainer": trainer | {"data": data.get("training")} if trainer else None,
                "rule": rule or None,
                "head": method.get("head"),
                "carried_image_bytes": image_bytes,
                "scalars": [_dict(_dict(task).get("scalars")) for task in _list(record.get("tasks"))],
                "onset": [_dict(_dict(task).get("onset")) for task in _list(record.get("tasks"))],
                "task_sizes": [len(_list(_dict(task).get("classes"))) for task in _list(record.get("tasks"))],
                "test_images": _test_images(record),
                "predictions_sha256": record.get("predictions_sha256"),
                "tuning": _tuning(record),
                "reason": record.get("reason") or standings.get(record["id"], Standing("")).why or None,
                "seconds": None if train is None or merge is None else train + merge,
            }
            | metrics.more(record)
        )
        if out[-1]["status"] == "outdated":  # its numbers answer another question
            out[-1] |= dict.fromkeys((*metrics.COLUMNS, *metrics.more(record)))
    return sorted(out, key=_by_coordinates)


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
    return f"{row['dataset']}, T = {row['n_tasks']}, protocol {row['protocol']}{split}"


def grouped(rows: Iterable[Row], names: Sequence[str]) -> dict[tuple[Any, ...], list[Row]]:
    """Rows by the values of some columns, groups in order of first appearance."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in names), []).append(row)
    return groups


def csv_text(rows: Iterable[Row], columns: Iterable[str] = COLUMNS) -> str:
    """Comma-separated text with a header; ``None`` is an empty field, numbers are unrounded."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def write_csv(rows: Iterable[Row], file: Path | TextIO) -> None:
    """Write the contract's CSV to a path (atomically) or to an open text file such as ``sys.stdout``."""
    if isinstance(file, Path):
        write_atomic(file, csv_text(rows))
    else:
        file.write(csv_text(rows))


def _row(record: Record, standings: Mapping[str, Standing]) -> Row:
    coordinates, totals = record["coordinates"], record.get("totals") or {}
    known = standings.get(record["id"]) if record["status"] == "done" else None
    status = known.status if known else record["status"]
    row: Row = {name: coordinates.get(name) for name in COORDINATES}
    row |= {"status": status} | metrics.row(record)
    return row | {name: totals.get(name) for name in COSTS} | {"digest": record.get("digest")}


def _test_images(record: Record) -> int | None:
    """How many images stand behind A_last."""
    return sum(total for _, total in record["counts"][-1]) if record["status"] == "done" else None


def _tuning(record: Record) -> dict[str, Any]:
    protocol = _dict(record.get("protocol"))
    tuning = _dict(protocol.get("tuning"))
    return tuning and tuning | {"trials": tuning["trials"] if protocol.get("per_method") else 0}


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _by_coordinates(row: Row) -> tuple[tuple[int, Any], ...]:
    # None (damaged records) sorts last; integers stay integers, so that 20 tasks come after 5.
    return tuple((1, "") if row[name] is None else (0, row[name]) for name in COORDINATES)
