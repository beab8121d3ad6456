"""What of a report is incomplete, in plain words: failed, stale, missing and single repeats.

The asked grid is not known here. What is missing is read off the other cells: a repeat that a stream has and a method
lacks there, and a method that one stream of a protocol has and another lacks.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from bench.report.rows import BLOCK, MEASURED, Row, grouped, stream_title

FAILED = "Failed: these repeats have no numbers"
OUTDATED = "Outdated: what these records were asked for has changed since; not counted"
STALE = "Stale: measured with code that has changed since; counted, to be run again"
MISSING = "Missing: repeats that other methods of the stream have"
NOT_RUN = "Not run here, though run on other streams of the protocol"
SINGLE = "One repeat only: no spread, and nothing can be tested"
BEGUN = "Begun and not finished: folders without a record"
NAMED = 6  #: how many repeats or folders a line names one by one


def incomplete(rows: Sequence[Row], begun: Sequence[str] = ()) -> dict[str, list[str]]:
    """Lines under what is wrong with them, a line a stream; empty where nothing is.

    Args:
        rows: labelled rows (see :func:`bench.report.rows.labelled`).
        begun: names of the folders that hold no record (yet).
    """
    found: dict[str, list[str]] = {}
    everywhere = {
        stream: {row["variant"]: row["label"] for row in mine}
        for stream, mine in grouped(rows, ("protocol", "eval_split")).items()
    }
    for stream in grouped(rows, BLOCK).values():
        methods = {label: mine for (label,), mine in grouped(stream, ("label",)).items()}
        repeats = {_repeat(row) for row in stream}
        with_status = {
            status: {
                label: wrong
                for label, mine in methods.items()
                if (wrong := [_repeat(row) for row in mine if row["status"] == status])
            }
            for status in ("failed", "outdated", "stale")
        }
        lacking = {
            label: lost for label, mine in methods.items() if (lost := sorted(repeats - {_repeat(row) for row in mine}))
        }
        single = [label for label, mine in methods.items() if sum(row["status"] in MEASURED for row in mine) == 1]
        here = {row["variant"] for row in stream}
        known = everywhere[stream[0]["protocol"], stream[0]["eval_split"]]
        not_run = [label for variant, label in known.items() if variant not in here]
        lines = {
            FAILED: _listed(with_status["failed"]),
            OUTDATED: _listed(with_status["outdated"]),
            STALE: _listed(with_status["stale"]),
            MISSING: _listed(lacking, f" of {len(repeats)}"),
            NOT_RUN: ", ".join(not_run),
            SINGLE: f"all {len(single)} methods" if len(single) == len(methods) > 1 else ", ".join(single),
        }
        for kind, line in lines.items():
            if line:
                found.setdefault(kind, []).append(f"{stream_title(stream[0])}: {line}")
    if begun:
        found[BEGUN] = [_some(begun)]
    order = (FAILED, OUTDATED, STALE, MISSING, NOT_RUN, SINGLE, BEGUN)
    return {kind: found[kind] for kind in order if kind in found}


def _listed(repeats: Mapping[str, Collection[str]], of: str = "") -> str:
    """Methods that have the same repeats in common share a line's entry."""
    labels: dict[tuple[str, ...], list[str]] = {}
    for label, some in repeats.items():
        labels.setdefault(tuple(some), []).append(label)
    return "; ".join(f"{len(some)}{of} ({_some(some)}) of {', '.join(names)}" for some, names in labels.items())


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")


def _repeat(row: Row) -> str:
    return f"c{row['class_order_seed']}-r{row['run_seed']}"
