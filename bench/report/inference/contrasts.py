"""Contrasts declared before the run: paired differences of A_last, with Holm's correction inside each declared family.

A repeat is one (class_order_seed, run_seed). All methods see the same orders, initialisations and batches there, so
two methods are compared repeat by repeat. Fewer than ``MIN_REPEATS`` pairs give the difference and its interval, no
p-value.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

from pydantic import Field

from bench.common.csv_text import csv_text
from bench.config.schema import Section
from bench.report.rows import BLOCK, Row, footnotes, grouped, measured_rows, repeats_of, stream_title
from bench.report.section import Document, TableSection

MIN_REPEATS = 5
ALPHA = 0.05
POWER = 0.8
HEADS = ("Contrast", "n", "Difference", "95 % interval", "Detectable", "p", "p (Holm)", "Verdict")


class Contrast(Section):
    """``better > than`` for every pair of the two lists (method keys, ``key@start`` or variants)."""

    better: list[str] = Field(min_length=1)
    than: list[str] = Field(min_length=1)


class ContrastFamily(Section):
    """Contrasts whose p-values are corrected together, over all streams of the report."""

    name: str
    about: str = ""
    contrasts: list[Contrast] = Field(min_length=1)


@dataclass
class Result:
    """One contrast on one stream; differences are in points of A_last, ``better - than``."""

    family: str
    stream: Row  #: a row of the stream, for its coordinates
    better: str
    than: str
    n: int
    difference: float
    sd: float | None = None
    low: float | None = None
    high: float | None = None
    detectable: float | None = None
    p: float | None = None
    p_holm: float | None = None

    @property
    def verdict(self) -> str:
        """What may be said: nothing below ``MIN_REPEATS`` or where p is not defined."""
        if self.n < MIN_REPEATS:
            return f"n < {MIN_REPEATS}, not tested"
        if self.p_holm is None:
            return "not testable (constant difference)"
        if self.p_holm >= ALPHA:
            return "not shown"
        return "holds" if self.difference > 0 else "reversed"


@dataclass(frozen=True)
class Contrasts:
    """All results of a report's families, with the lines that must stand under them."""

    results: list[Result]
    notes: list[str]
    marks: list[str]  #: what the marks on labels mean

    def document(self) -> Document:
        """A table a family and stream."""
        streams: dict[str, list[Result]] = {}
        for result in self.results:
            streams.setdefault(f"{result.family}: {stream_title(result.stream)}", []).append(result)
        heads = [(head,) for head in HEADS]
        sections = [TableSection(title, heads, [_printed(r) for r in results]) for title, results in streams.items()]
        return Document("Declared contrasts", sections, [*self.notes, *self.marks])

    def csv(self) -> str:
        """All numbers, unrounded; ``footnote`` explains the marks that a contrast's labels carry."""
        numbers = ("n", "difference", "sd", "low", "high", "detectable", "p", "p_holm", "verdict")
        lines: list[dict[str, Any]] = []
        for r in self.results:
            line = (
                {"family": r.family} | {name: r.stream[name] for name in BLOCK} | {"better": r.better, "than": r.than}
            )
            used = " ".join(text for text in self.marks if text[0] in (r.better[-1], r.than[-1]))
            lines.append(line | {name: getattr(r, name) for name in numbers} | {"footnote": used})
        return csv_text(lines, ("family", *BLOCK, "better", "than", *numbers, "footnote"))


def evaluate(families: Iterable[ContrastFamily], rows: Sequence[Row]) -> Contrasts:
    """The declared contrasts that the rows (labelled, see ``frame``) can answer, and notes on the rest."""
    streams = list(grouped(measured_rows(rows), BLOCK).values())
    results: list[Result] = []
    notes = [
        "Differences of A_last in points, paired over repeats; two-sided paired t. Detectable: the true difference "
        "that one such test would find with 80 % power at the observed spread."
    ]
    for family in families:
        of_family, unanswered = _answers(family, streams)
        tested = [(result, result.p) for result in of_family if result.p is not None]
        for (result, _), corrected in zip(tested, holm([p for _, p in tested]), strict=True):
            result.p_holm = corrected
        results += of_family
        about = f" {family.about.strip()}" if family.about else ""
        notes.append(f"{family.name}:{about} Holm's correction over its {len(tested)} tests, all streams together.")
        for pair, where in unanswered.items():
            places = "" if len(where) == len(streams) else f" on {'; '.join(where)}"
            notes.append(
                f"{family.name}: {pair} cannot be answered{places} (not run, no common repeat or name not unique)."
            )
    return Contrasts(results, notes, footnotes(rows))


def _answers(family: ContrastFamily, streams: Iterable[Sequence[Row]]) -> tuple[list[Result], dict[str, list[str]]]:
    """The family's results before correction, and by pair the streams that cannot answer it."""
    results: list[Result] = []
    unanswered: dict[str, list[str]] = {}
    for stream in streams:
        for better, than in _pairs(family):
            one, other = repeats_of(better, stream), repeats_of(than, stream)
            differences = paired(one, other)
            if differences:
                results.append(_result(family.name, one[0], other[0], differences))
            else:
                unanswered.setdefault(f"{better} > {than}", []).append(stream_title(stream[0]))
    return results, unanswered


def _pairs(family: ContrastFamily) -> list[tuple[str, str]]:
    """Every ordered pair that the family declares, once."""
    pairs = (pair for contrast in family.contrasts for pair in product(contrast.better, contrast.than))
    return [pair for pair in dict.fromkeys(pairs) if pair[0] != pair[1]]


def paired(one: Iterable[Row], other: Iterable[Row]) -> list[float]:
    """Differences of A_last over the repeats that both have."""
    first, second = ({(r["class_order_seed"], r["run_seed"]): r["a_last"] for r in rows} for rows in (one, other))
    return [first[repeat] - second[repeat] for repeat in sorted(first.keys() & second.keys())]


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values (Holm, 1979), in the order given."""
    from statsmodels.stats.multitest import multipletests

    return [float(p) for p in multipletests(p_values, method="holm")[1]] if p_values else []


def smallest_detectable(sd: float, n: int) -> float:
    """The true difference that a two-sided paired t-test at 5 % finds with 80 % power, given the sd of n differences.

    In points. One test alone, before Holm's correction. Needs n >= 2.
    """
    return _detectable_effect(n) * sd


@cache
def _detectable_effect(n: int) -> float:
    from statsmodels.stats.power import TTestPower

    return float(TTestPower().solve_power(nobs=n, alpha=ALPHA, power=POWER, alternative="two-sided"))


def _result(family: str, better: Row, than: Row, differences: Sequence[float]) -> Result:
    from scipy.stats import ttest_1samp

    n, mean = len(differences), statistics.fmean(differences)
    result = Result(family, better, better["label"], than["label"], n, mean)
    if n == 1:
        return result
    result.sd = sd = statistics.stdev(differences)
    result.detectable = smallest_detectable(sd, n)
    # Accuracies are ratios of counts: a smaller sd is rounding, and t would divide by it.
    if sd < 1e-9:
        result.low = result.high = mean
        return result
    test = ttest_1samp(differences, 0.0)
    result.low, result.high = map(float, test.confidence_interval(1 - ALPHA))
    result.p = float(test.pvalue) if n >= MIN_REPEATS else None
    return result


def _printed(result: Result) -> list[str]:
    """The texts under :data:`HEADS`."""

    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:+.1f}"

    def probability(value: float | None) -> str:
        return "-" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"

    return [
        f"{result.better} > {result.than}",
        str(result.n),
        number(result.difference),
        "-" if result.low is None else f"{number(result.low)} to {number(result.high)}",
        "-" if result.detectable is None else f"{result.detectable:.1f}",
        probability(result.p),
        probability(result.p_holm),
        result.verdict,
    ]
