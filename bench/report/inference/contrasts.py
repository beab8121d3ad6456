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
from typing import TYPE_CHECKING, Any

from pydantic import Field

from bench.config.schema import Section
from bench.report.rows import BLOCK, MEASURED, Row, csv_text, footnotes, grouped, matches, stream_title
from bench.report.tables import escape_markdown, markdown_table, terminal_table

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Group

MIN_REPEATS = 5
ALPHA = 0.05
POWER = 0.8


class Contrast(Section):
    """``better > than`` for every pair of the two lists (method keys, ``key@start`` or variants)."""

    better: list[str] = Field(min_length=1)
    than: list[str] = Field(min_length=1)


class Family(Section):
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

    def markdown(self) -> str:
        """GitHub Markdown, a table per family and stream."""
        parts = ["# Declared contrasts"]
        for title, frame in self.tables().items():
            parts += [f"## {escape_markdown(title)}", markdown_table(frame)]
        parts.append("\n".join(f"- {escape_markdown(note)}" for note in [*self.notes, *self.marks]))
        return "\n\n".join(parts) + "\n"

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

    def terminal(self) -> Group:
        """What ``rich`` prints."""
        from rich.console import Group
        from rich.text import Text

        parts: list[Any] = [terminal_table(frame, title) for title, frame in self.tables().items()]
        return Group(*parts, *(Text(note, style="dim") for note in [*self.notes, *self.marks]))

    def tables(self) -> dict[str, pd.DataFrame]:
        """Frames of strings, one a family and stream, by title."""
        sections: dict[str, list[Result]] = {}
        for result in self.results:
            sections.setdefault(f"{result.family}: {stream_title(result.stream)}", []).append(result)
        return {title: _printed(mine) for title, mine in sections.items()}


def evaluate(families: Iterable[Family], rows: Sequence[Row]) -> Contrasts:
    """The declared contrasts that the rows (labelled, see ``frame``) can answer, and notes on the rest."""
    streams = grouped((row for row in rows if row["status"] in MEASURED and row["a_last"] is not None), BLOCK)
    results: list[Result] = []
    notes = [
        "Differences of A_last in points, paired over repeats; two-sided paired t. Detectable: the true difference "
        "that one such test would find with 80 % power at the observed spread."
    ]
    for family in families:
        mine: list[Result] = []
        unanswered: dict[str, list[str]] = {}
        for stream in streams.values():
            for better, than in _pairs(family):
                one, other = _repeats(better, stream), _repeats(than, stream)
                differences = paired(one, other)
                if differences:
                    mine.append(_result(family.name, one[0], other[0], differences))
                else:
                    unanswered.setdefault(f"{better} > {than}", []).append(stream_title(stream[0]))
        tested = [result for result in mine if result.p is not None]
        for result, value in zip(tested, holm([result.p for result in tested if result.p is not None]), strict=True):
            result.p_holm = value
        results += mine
        about = f" {family.about.strip()}" if family.about else ""
        notes.append(f"{family.name}:{about} Holm's correction over its {len(tested)} tests, all streams together.")
        for pair, where in unanswered.items():
            places = "" if len(where) == len(streams) else f" on {'; '.join(where)}"
            notes.append(
                f"{family.name}: {pair} cannot be answered{places} (not run, no common repeat or name not unique)."
            )
    return Contrasts(results, notes, footnotes(rows))


def _pairs(family: Family) -> list[tuple[str, str]]:
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


def _repeats(selector: str, stream: Iterable[Row]) -> list[Row]:
    """The repeats of the one method that the selector means; empty when it means none or several."""
    found = [row for row in stream if matches(selector, row)]
    return found if len({row["variant"] for row in found}) == 1 else []


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


def _printed(results: Sequence[Result]) -> pd.DataFrame:
    import pandas as pd

    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:+.1f}"

    def probability(value: float | None) -> str:
        return "-" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"

    return pd.DataFrame(
        {
            "Contrast": f"{r.better} > {r.than}",
            "n": str(r.n),
            "Difference": number(r.difference),
            "95 % interval": "-" if r.low is None else f"{number(r.low)} to {number(r.high)}",
            "Detectable": "-" if r.detectable is None else f"{r.detectable:.1f}",
            "p": probability(r.p),
            "p (Holm)": probability(r.p_holm),
            "Verdict": r.verdict,
        }
        for r in results
    )
