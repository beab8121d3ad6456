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
    kinds: dict[str, list[str]] = {}
    of_protocol = {
        stream: {row["variant"]: row["label"] for row in group}
        for stream, group in grouped(rows, ("protocol", "eval_split")).items()
    }
    for stream in grouped(rows, BLOCK).values():
        known = of_protocol[stream[0]["protocol"], stream[0]["eval_split"]]
        for kind, lines in _of_stream(stream, known).items():
            kinds.setdefault(kind, []).extend(f"{stream_title(stream[0])}: {line}" for line in lines if line)
    if begun:
        kinds[BEGUN] = [some(begun)]
    return {kind: lines for kind, lines in kinds.items() if lines}


def _of_stream(stream: Sequence[Row], known: Mapping[str, str]) -> dict[str, list[str]]:
    """What one stream lacks, by kind; ``known`` are the variants that its protocol was run with, and their labels."""
    methods = {label: group for (label,), group in grouped(stream, ("label",)).items()}
    repeats = {_repeat(row) for row in stream}
    lacking = {
        label: missing
        for label, group in methods.items()
        if (missing := sorted(repeats - {_repeat(row) for row in group}))
    }
    single = [label for label, group in methods.items() if sum(row["status"] in MEASURED for row in group) == 1]
    here = {row["variant"] for row in stream}
    return {
        FAILED: [_with_status(stream, "failed")],
        OUTDATED: _outdated(stream),
        STALE: [_with_status(stream, "stale")],
        MISSING: [_listed(lacking, f" of {len(repeats)}")],
        NOT_RUN: [", ".join(label for variant, label in known.items() if variant not in here)],
        SINGLE: [f"all {len(single)} methods" if len(single) == len(methods) > 1 else ", ".join(single)],
    }


def _with_status(rows: Sequence[Row], status: str) -> str:
    chosen = grouped((row for row in rows if row["status"] == status), ("label",))
    return _listed({label: [_repeat(row) for row in group] for (label,), group in chosen.items()})


def _outdated(rows: Sequence[Row]) -> list[str]:
    """A line a reason, because one edit outdates many records; the rarest of many reasons share a line."""
    reasons = grouped((row for row in rows if row["status"] == "outdated"), ("reason",))
    most = sorted(reasons, key=lambda reason: -len(reasons[reason]))
    lines = [f"{_with_status(reasons[reason], 'outdated')}: {reason[0]}" for reason in most[:NAMED]]
    rest = [row for reason in most[NAMED:] for row in reasons[reason]]
    return [*lines, f"{_with_status(rest, 'outdated')}: {len(most) - NAMED} other reasons"] if rest else lines


def _listed(repeats: Mapping[str, Collection[str]], of: str = "") -> str:
    """Methods that have the same repeats in common share a line's entry."""
    labels: dict[tuple[str, ...], list[str]] = {}
    for label, group in repeats.items():
        labels.setdefault(tuple(group), []).append(label)
    return "; ".join(f"{len(group)}{of} ({some(group)}) of {', '.join(names)}" for group, names in labels.items())


def some(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    names = list(names)
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def _repeat(row: Row) -> str:
    return f"c{row['class_order_seed']}-r{row['run_seed']}"
