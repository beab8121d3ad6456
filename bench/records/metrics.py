"""Metrics of a class-incremental stream, as pure functions of integer counts.

``counts[t][i] = (correct, total)``: after task t, on task i's test images (i <= t), argmax among all classes seen.
A row that was not evaluated is ``None`` (joint training is evaluated only at the end). ``a[t,i] = 100 correct/total``.

Everything is in percent or percentage points, unrounded. What is undefined is ``None``, never 0: a stream of one task
has no forgetting, and neither has a method whose earlier rows are absent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import fsum
from typing import Any, Literal

Pair = Sequence[int]
Counts = Sequence[Sequence[Pair] | None]
By = Literal["samples", "tasks"]


def check(counts: Any) -> None:
    """Raise ``ValueError`` with one line unless ``counts`` is a triangle of possible counts.

    Row t is ``None`` or holds t+1 pairs of integers with 0 <= correct <= total and total > 0, and a task's test set has
    the same size in every row.
    """
    if not isinstance(counts, list | tuple) or not counts:
        raise ValueError("counts are not a list of rows")
    sizes: dict[int, int] = {}
    for t, row in enumerate(counts):
        if row is None:
            continue
        if not isinstance(row, list | tuple) or len(row) != t + 1:
            raise ValueError(f"counts row {t} does not have {t + 1} entries")
        for i, pair in enumerate(row):
            if problem := _problem(pair):
                raise ValueError(f"counts row {t}, task {i}: {problem}")
            if sizes.setdefault(i, pair[1]) != pair[1]:
                raise ValueError(f"counts row {t}, task {i}: {pair[1]} test images, {sizes[i]} in an earlier row")


def check_pair(pair: Any, where: str) -> None:
    """Raise ``ValueError`` starting with ``where`` unless ``pair`` is (correct, total) of at least one test image."""
    if problem := _problem(pair):
        raise ValueError(f"{where}: {problem}")


def _problem(pair: Any) -> str:
    """What is wrong with a pair, or nothing. Reports ask this of millions: no text is made for those that are right."""
    # `type is int`, because a JSON `true` is an int to isinstance.
    if not isinstance(pair, list | tuple) or len(pair) != 2 or type(pair[0]) is not int or type(pair[1]) is not int:
        return "not a pair of integers"
    return "" if 0 <= pair[0] <= pair[1] > 0 else f"{pair[0]} correct of {pair[1]} is impossible"


def accuracy(row: Sequence[Pair] | None, by: By = "samples") -> float | None:
    """A_t of one row: sum of correct / sum of total (``samples``), or the mean of the tasks' accuracies (``tasks``)."""
    if row is None:
        return None
    if by == "samples":
        return _percent((sum(pair[0] for pair in row), sum(pair[1] for pair in row)))
    return _mean(_percent(pair) for pair in row)


def curve(counts: Counts, by: By = "samples") -> list[float | None]:
    """A_t after every task, ``None`` where the row is absent."""
    return [accuracy(row, by) for row in counts]


def a_last(counts: Counts, by: By = "samples") -> float | None:
    """A_T, the accuracy over all tasks after the last one."""
    return accuracy(counts[-1], by)


def avg_acc(counts: Counts, by: By = "samples") -> float | None:
    """Average incremental accuracy: mean over t of A_t, unweighted over t in both forms (iCaRL, 1611.07725)."""
    return _mean(curve(counts, by))


def forgetting(counts: Counts, by: By = "samples") -> float | None:
    """Mean over i < T of max_{i <= t < T} a[t,i] - a[T,i] (Chaudhry et al., 1801.10112); may be negative.

    ``samples`` weighs task i by its number of test images.
    """
    return _over_earlier(counts, lambda column: max(column[:-1]) - column[-1], by)


def bwt(counts: Counts, by: By = "samples") -> float | None:
    """Backward transfer: mean over i < T of a[T,i] - a[i,i] (GEM, 1706.08840)."""
    return _over_earlier(counts, lambda column: column[-1] - column[0], by)


def learn_acc(counts: Counts) -> float | None:
    """Learning accuracy: mean over i of a[i,i], what is served right after a task was learnt."""
    return _mean(_diagonal(counts))


def merge_drop(counts: Counts, before: Sequence[Pair | None]) -> float | None:
    """What merging costs the newest task, in points: mean over i of before_i - a[i,i].

    ``before[i]`` are the counts of theta*_i, the weights as training left them, on task i among all classes seen then.
    """
    if len(before) != len(counts):
        return None
    return _mean(
        None if pair is None or served is None else _percent(pair) - served
        for pair, served in zip(before, _diagonal(counts), strict=True)
    )


def drift(counts: Counts) -> float | None:
    """What later tasks cost, in points: mean over i of a[i,i] - a[T,i], the last task (0 by definition) included.

    So for T > 1: A_last (task mean) = mean of before_i - merge_drop - drift.
    """
    diagonal = _diagonal(counts)
    if len(counts) < 2 or counts[-1] is None:
        return None
    losses = (
        None if learnt is None else learnt - _percent(pair) for pair, learnt in zip(counts[-1], diagonal, strict=True)
    )
    return _mean(losses)


def forgetting_max_incl(counts: Counts) -> float | None:
    """Forgetting with the maximum over t <= T (LAMDA-PILOT, Mammoth): never negative, so it hides positive transfer."""
    return _over_earlier(counts, lambda column: max(column) - column[-1], "tasks")


def _percent(pair: Pair) -> float:
    # 100 * correct stays an integer, so that the only rounding is that of the one division.
    return 100 * pair[0] / pair[1]


def _mean(values: Iterable[float | None]) -> float | None:
    """The mean, ``None`` when it is over nothing or a value is undefined."""
    known: list[float] = []
    for value in values:
        if value is None:
            return None
        known.append(value)
    return fsum(known) / len(known) if known else None


def _rows(counts: Counts) -> list[list[float]] | None:
    """All accuracies a[t][i], ``None`` when a row is absent."""
    rows = []
    for entries in counts:
        if entries is None:
            return None
        rows.append([_percent(pair) for pair in entries])
    return rows


def _diagonal(counts: Counts) -> list[float | None]:
    return [None if entries is None else _percent(entries[t]) for t, entries in enumerate(counts)]


def _over_earlier(counts: Counts, score: Callable[[list[float]], float], by: By) -> float | None:
    """The (weighted) mean over tasks i < T of ``score(a[i..T, i])``."""
    rows, last = _rows(counts), counts[-1]
    if rows is None or last is None or len(rows) < 2:
        return None
    earlier = range(len(rows) - 1)
    scores = [score([entries[i] for entries in rows[i:]]) for i in earlier]
    weights = [last[i][1] if by == "samples" else 1 for i in earlier]
    return fsum(w * s for w, s in zip(weights, scores, strict=True)) / sum(weights)
