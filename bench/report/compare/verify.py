"""Do the numbers of this machine agree with published ones? Used by ``clmerge verify``.

The same cell in both: A_last may differ by ``tolerance`` points, because another CPU, thread count or library version
rounds differently and training amplifies it. Repeats with other seeds: their mean must lie inside the prediction
interval of the published repeats.
"""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from bench.common.errors import UserError
from bench.records.record import COORDINATES
from bench.report.columns import RESULTS
from bench.report.rows import Row

TOLERANCE = 3.0
CONFIDENCE = 0.99
SEEDS = ("class_order_seed", "run_seed")
GROUP = tuple(name for name in COORDINATES if name not in SEEDS)
INTEGERS = ("n_tasks", *SEEDS)
NEEDED = (*COORDINATES, "status", "a_last")


class Verification(NamedTuple):
    """Lines to print, and whether something was compared and all of it agreed."""

    lines: list[str]
    ok: bool


def read_published(path: Path) -> list[Row]:
    """Rows of a published CSV: lines starting with ``#`` (machine, command), then the columns of ``clmerge results``.

    Coordinates and ``a_last`` get their types, other fields stay text, empty ones and columns that an older version
    did not write become ``None``.

    Raises:
        UserError: not readable, a column that says what was measured is missing, or a number is not one.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: not readable ({type(error).__name__}); give a CSV as `clmerge results --csv` writes"
        ) from None
    lines = text.splitlines()
    skipped = next((i for i, line in enumerate(lines) if line and not line.startswith("#")), len(lines))
    reader = csv.DictReader(lines[skipped:])
    missing = [name for name in NEEDED if name not in (reader.fieldnames or ())]
    if missing:
        raise UserError(f"{path}: column {missing[0]!r} is missing; give a CSV as `clmerge results --csv` writes")
    rows = []
    for fields in reader:
        row: Row = {name: fields.get(name) or None for name in RESULTS}
        try:
            row |= {name: int(fields[name]) for name in INTEGERS}
            row["a_last"] = None if row["a_last"] is None else float(row["a_last"])
        except (TypeError, ValueError):
            where = f"{path}: line {skipped + reader.line_num}"
            raise UserError(f"{where}: {', '.join(INTEGERS)} must be integers and a_last a number") from None
        rows.append(row)
    return rows


def verify(new_rows: Iterable[Row], published_rows: Iterable[Row], tolerance: float = TOLERANCE) -> Verification:
    """Compare A_last of new cells with published ones.

    Args:
        new_rows: rows as ``frame.rows`` gives them.
        published_rows: rows as :func:`read_published` gives them.
        tolerance: largest difference in points for a cell that both have.

    A method that only one side has is said and is no error; a cell that failed or is damaged here and is done there is
    one. ``ok`` is false when nothing could be compared.
    """
    new, published = _by_group(new_rows), _by_group(published_rows)
    lines: list[str] = []
    verdicts: list[bool] = []
    for group in sorted({*new, *published}, key=str):
        if group not in published or group not in new:
            lines.append(f"{'not published' if group in new else 'not run here'}: {_name(group)}")
            continue
        for verdict, line in _compared(_name(group), new[group], published[group], tolerance):
            verdicts += [] if verdict is None else [verdict]
            lines.append(line)
    failed = verdicts.count(False)
    lines.append(
        f"{len(verdicts)} comparisons, {failed} outside. The same cell may differ by {tolerance:g} points because "
        "other CPUs and thread counts round differently; of the means of other repeats about "
        f"{1 - CONFIDENCE:.0%} fall outside by chance."
        if verdicts
        else "nothing could be compared: no method here has published repeats under the same dataset, T and protocol"
    )
    return Verification(lines, bool(verdicts) and not failed)


def _compared(
    name: str, rows: Iterable[Row], published: Iterable[Row], tolerance: float
) -> Iterator[tuple[bool | None, str]]:
    """A verdict (None: nothing to compare) and a line for each repeat of a method, and for the mean of new repeats."""
    there = {_repeat(row): row["a_last"] for row in published if _usable(row)}
    fresh: list[float] = []
    for row in rows:
        order, run = repeat = _repeat(row)
        where = f"{name}, class order {order}, run {run}"
        if not _usable(row):
            # Another program's or another configuration's result: neither agreement nor contradiction.
            broken = row["status"] not in ("stale", "outdated") and repeat in there
            yield (False if broken else None), f"{'FAIL' if broken else 'not compared'}: {where}: {row['status']} here"
        elif repeat in there:
            difference = row["a_last"] - there[repeat]
            agrees = abs(difference) <= tolerance
            yield (
                agrees,
                f"{_word(agrees)}: {where}: {row['a_last']:.2f} here, {there[repeat]:.2f} published, "
                f"difference {difference:+.2f} (tolerance {tolerance:g})",
            )
        else:
            fresh.append(row["a_last"])
    if fresh:
        inside, line = _predicted(fresh, list(there.values()))
        yield inside, f"{_word(inside)}: {name}: {line}"


def prediction_interval(
    published: Sequence[float], repeats: int, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """Where the mean of ``repeats`` further runs falls, if they are drawn as the published ones were.

    Normal theory: mean ± t_{n-1} s sqrt(1/n + 1/repeats). Needs at least two published values.
    """
    from scipy.stats import t

    n = len(published)
    spread = statistics.stdev(published) * math.sqrt(1 / n + 1 / repeats)
    half = float(t.ppf(0.5 + confidence / 2, n - 1)) * spread
    mean = statistics.fmean(published)
    return mean - half, mean + half


def _predicted(fresh: Sequence[float], published: Sequence[float]) -> tuple[bool | None, str]:
    mean = statistics.fmean(fresh)
    text = f"mean of {len(fresh)} other repeats {mean:.2f}"
    if len(published) < 2:
        return None, f"{text}; {len(published)} published repeats give no interval"
    low, high = prediction_interval(published, len(fresh))
    return (
        low <= mean <= high,
        f"{text}, {CONFIDENCE:.0%} prediction interval of {len(published)} published {low:.2f} to {high:.2f}",
    )


def _by_group(rows: Iterable[Row]) -> dict[tuple[object, ...], list[Row]]:
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in GROUP), []).append(row)
    return groups


def _usable(row: Row) -> bool:
    return row["status"] == "done" and row["a_last"] is not None


def _repeat(row: Row) -> tuple[int, int]:
    return row["class_order_seed"], row["run_seed"]


def _name(group: tuple[object, ...]) -> str:
    dataset, n_tasks, protocol, method, variant, _ = group
    return f"{dataset} T={n_tasks} {protocol} {method}" + ("" if method == variant else f" ({variant})")


def _word(agrees: bool | None) -> str:
    return "not compared" if agrees is None else "ok" if agrees else "FAIL"
