"""Average ranks over datasets, with Friedman's test and Nemenyi's critical difference (Demsar, JMLR 7, 2006).

One dataset is one observation, whatever the number of task counts and repeats it was run with: its score is A_last,
averaged over the repeats that all methods have and then over task counts. Below ``MIN_DATASETS`` independent datasets
the test could find next to nothing, and nothing is drawn.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator

from bench.config.schema import Section
from bench.report.rows import BLOCK, MEASURED, Row, csv_text, footnotes, grouped, mark, matches
from bench.report.tables import escape_markdown, markdown_table

if TYPE_CHECKING:
    import pandas as pd

MIN_DATASETS = 8
ALPHA = 0.05


class CriticalConfig(Section):
    """The ``critical`` key of a report."""

    methods: list[str] = Field(min_length=3)  #: selectors of what is ranked, each once
    same: list[list[str]] = []  #: datasets that are made of the same images, and so count as one

    @field_validator("same")
    @classmethod
    def _once(cls, same: list[list[str]]) -> list[list[str]]:
        names = [name for group in same for name in group]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice:
            raise ValueError(f"dataset {twice!r} is listed twice; list it once, with all that is made of its images")
        return same


@dataclass(frozen=True)
class Ranking:
    """Methods ranked on each dataset of one protocol and split; rank 1 is the best, ties share their ranks.

    Attributes:
        place: protocol and split, in words.
        scores: mean A_last, datasets x labels.
        repeats: the fewest and the most repeats behind a score's task counts.
        p: of Friedman's test, corrected for ties, that all methods are equal.
        difference: two average ranks that differ by less are not told apart (Nemenyi, 5 %).
        marks: what the marks on labels mean.
    """

    place: str
    scores: pd.DataFrame
    repeats: tuple[int, int]
    p: float
    difference: float
    marks: list[str]

    @property
    def ranks(self) -> pd.Series[float]:
        """Average ranks by label, the best first."""
        return self.scores.rank(axis=1, ascending=False).mean().sort_values(kind="stable")

    def together(self) -> pd.DataFrame:
        """p-values of all pairs (labels x labels) by Nemenyi's test; all 1 where Friedman's test finds nothing."""
        import scikit_posthocs

        found = scikit_posthocs.posthoc_nemenyi_friedman(self.scores)
        return found if self.p < ALPHA else found.clip(lower=1)

    def told(self) -> str:
        """The test in a sentence."""
        low, high = self.repeats
        n = f"{low}" if low == high else f"{low} to {high}"
        p = "p < 0.001" if self.p < 0.001 else f"p = {self.p:.3f}"
        found = "" if self.p < ALPHA else "; no difference is shown, so all are joined"
        return (
            f"{self.place}: A_last on {len(self.scores)} datasets, {n} repeats a task count; Friedman {p}"
            f"{found}; critical difference {self.difference:.2f} ranks (Nemenyi, 5 %)."
        )


@dataclass(frozen=True)
class Critical:
    """The rankings that there are datasets enough for, and why there are no others."""

    rankings: list[Ranking]
    notes: list[str]

    def markdown(self) -> str:
        """Average ranks, a table a ranking."""
        import pandas as pd

        parts = ["# Average ranks"]
        for ranking in self.rankings:
            ranks = ranking.ranks
            frame = pd.DataFrame({"Method": ranks.index, "Average rank": [f"{rank:.2f}" for rank in ranks]})
            parts += [markdown_table(frame), *(escape_markdown(text) for text in (ranking.told(), *ranking.marks))]
        parts.append("\n".join(f"- {escape_markdown(note)}" for note in self.notes))
        return "\n\n".join(part for part in parts if part) + "\n"

    def csv(self) -> str:
        """One line a ranking, dataset and method: A_last and its rank, unrounded."""
        lines: list[dict[str, Any]] = []
        for ranking in self.rankings:
            ranks = ranking.scores.rank(axis=1, ascending=False).to_dict("index")
            for dataset, scores in ranking.scores.to_dict("index").items():
                for label, score in scores.items():
                    place = {"ranking": ranking.place, "dataset": dataset, "method": label}
                    lines.append(place | {"a_last": score, "rank": ranks[dataset][label]})
        return csv_text(lines, ("ranking", "dataset", "method", "a_last", "rank"))

    def figure(self) -> dict[str, bytes]:
        """The critical-difference diagrams as ``{"png": ..., "pdf": ...}``; ``{}`` without a ranking."""
        if not self.rankings:
            return {}
        from bench.report.figures.drawing import paper_style, rendered

        with paper_style():
            return rendered(diagrams(self.rankings))


def evaluate(config: CriticalConfig, rows: Sequence[Row]) -> Critical:
    """Rankings of labelled rows, one for each protocol and split."""
    measured = [row for row in rows if row["status"] in MEASURED and row["a_last"] is not None]
    rankings: list[Ranking] = []
    notes: list[str] = []
    for (protocol, split), mine in grouped(measured, ("protocol", "eval_split")).items():
        place = f"Protocol {protocol}" + ("" if split == "test" else f", {split} split")
        scores, repeats = _scores(config, mine)
        if len(scores) < MIN_DATASETS:
            notes.append(
                f"{place}: the critical-difference diagram is left out: {len(scores)} independent datasets have all of "
                f"its methods, and fewer than {MIN_DATASETS} say nothing (task counts of one dataset count as one)."
            )
        else:
            used = [row for row in mine if any(matches(selector, row) for selector in config.methods)]
            rankings.append(_ranking(place, scores, repeats, footnotes(used)))
    return Critical(rankings, notes)


def _scores(config: CriticalConfig, rows: Sequence[Row]) -> tuple[dict[str, dict[str, float]], list[int]]:
    """Scores by dataset (or group of the same images) and label, and the numbers of repeats behind them."""
    named = {name: " + ".join(group) for group in config.same for name in group}
    found: dict[str, list[dict[str, float]]] = {}
    repeats: list[int] = []
    for stream in grouped(rows, BLOCK).values():
        methods: dict[str, dict[tuple[int, int], float]] = {}
        for selector in config.methods:
            mine = [row for row in stream if matches(selector, row)]
            if len({row["variant"] for row in mine}) == 1:
                told = {(row["class_order_seed"], row["run_seed"]): row["a_last"] for row in mine}
                methods[f"{selector}{mark(mine[0])}"] = told  # one name on every dataset; labels may differ
        common = set.intersection(*map(set, methods.values())) if methods else set()
        if len(methods) < len(config.methods) or not common:
            continue
        repeats.append(len(common))
        means = {label: statistics.fmean(told[r] for r in common) for label, told in methods.items()}
        dataset: str = stream[0]["dataset"]
        found.setdefault(named.get(dataset, dataset), []).append(means)
    averaged = {
        name: {label: statistics.fmean(means[label] for means in streams) for label in streams[0]}
        for name, streams in found.items()
    }
    return averaged, repeats


def _ranking(place: str, scores: dict[str, dict[str, float]], repeats: list[int], marks: list[str]) -> Ranking:
    import pandas as pd
    from scipy.stats import friedmanchisquare

    frame = pd.DataFrame.from_dict(scores, orient="index")
    tied = bool((frame.nunique(axis=1) == 1).all())  # then the statistic is 0 / 0
    p = 1.0 if tied else float(friedmanchisquare(*frame.to_numpy().T).pvalue)
    return Ranking(place, frame, (min(repeats), max(repeats)), p, critical_difference(*frame.shape), marks)


def critical_difference(datasets: int, methods: int, alpha: float = ALPHA) -> float:
    """Nemenyi's, in ranks: q sqrt(k (k + 1) / 6 N), q the studentised range statistic over sqrt 2."""
    from scipy.stats import studentized_range

    q = float(studentized_range.ppf(1 - alpha, methods, math.inf)) / math.sqrt(2)
    return q * math.sqrt(methods * (methods + 1) / (6 * datasets))


def diagrams(rankings: Sequence[Ranking]) -> Any:
    """One panel a ranking: average ranks, and bars that join what is not told apart. Drawn inside ``paper_style()``."""
    import textwrap

    import scikit_posthocs
    from matplotlib.figure import Figure

    height = [0.9 + 0.17 * len(ranking.ranks) for ranking in rankings]
    figure = Figure(figsize=(6.5, sum(height)), layout="constrained")
    panels = figure.subplots(len(rankings), 1, squeeze=False, height_ratios=height)[:, 0]
    for axes, ranking in zip(panels, rankings, strict=True):
        scikit_posthocs.critical_difference_diagram(
            ranking.ranks, ranking.together(), ax=axes, color_palette=dict.fromkeys(ranking.ranks.index, "0.2"),
            label_props={"fontsize": 8}, elbow_props={"linewidth": 0.8}, marker_props={"s": 14},
        )  # fmt: skip
        axes.grid(visible=False)
        axes.tick_params(labelsize=8)
        lines = [textwrap.fill(ranking.told(), 110), *ranking.marks, "average rank (1: best)"]
        axes.set_title("\n".join(lines), fontsize=7)
    return figure
