"""Is a published number consistent with what is measured here?

A number is judged only under its family's reproduction protocol and class order: it is consistent where it lies in the
95 % prediction interval of our repeats for one more run. Everything else is not run, or not comparable, and why.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from bench.common.errors import UserError
from bench.config.files import load_protocol
from bench.registry import Registry
from bench.report.compare.verify import prediction_interval
from bench.report.papers.published import Family, PublishedNumber
from bench.report.rows import Row, csv_text
from bench.report.tables import HEADERS, escape_markdown, markdown_table

CONFIDENCE = 0.95
MIN_REPEATS = 2
Outcome = Literal["consistent", "inconsistent", "not run", "not comparable"]
OUTCOMES: tuple[Outcome, ...] = ("consistent", "inconsistent", "not run", "not comparable")
COLUMNS = (
    "family", "dataset", "n_tasks", "method", "metric", "published", "published_std", "verdict", "why", "n", "mean",
    "sd", "low", "high", "protocol", "class_order_seed", "inferred", "confidence", "source",
    "source_metric", "note",
)  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """One published number and what our runs say of it; percent."""

    family: Family
    number: PublishedNumber
    outcome: Outcome
    why: str = ""
    values: tuple[float, ...] = ()  #: ours, one a repeat
    low: float | None = None
    high: float | None = None
    inferred: int = 0  #: settings of the reproduction protocol that the paper does not state


@dataclass(frozen=True)
class Verdicts:
    """Of every published number."""

    all: list[Verdict]

    def counts(self) -> dict[Outcome, int]:
        """How many there are of each outcome."""
        return {outcome: sum(v.outcome == outcome for v in self.all) for outcome in OUTCOMES}

    def markdown(self) -> str:
        """The rule, the counts, and a table a family."""
        told = ", ".join(f"{count} {outcome}" for outcome, count in self.counts().items())
        parts = [
            "# Published numbers",
            f"{told}.",
            "A published number is judged under its family's reproduction protocol and class order alone: consistent "
            f"where it lies in the {CONFIDENCE:.0%} prediction interval of our repeats for one more run (mean ± t s "
            f"√(1 + 1/n), at least {MIN_REPEATS} repeats). Of numbers that agree, about {1 - CONFIDENCE:.0%} fall "
            "outside by chance. A published mean of several runs is judged as one run, which is lenient.",
        ]
        for family in dict.fromkeys(v.family.key for v in self.all):
            mine = [v for v in self.all if v.family.key == family]
            parts += [f"## {escape_markdown(mine[0].family.title)}", escape_markdown(_about(mine[0]))]
            parts.append(_table(mine))
            parts.append("\n".join(f"- {escape_markdown(doubt)}" for doubt in mine[0].family.doubts))
        return "\n\n".join(part for part in parts if part) + "\n"

    def csv(self) -> str:
        """A line a published number, unrounded."""
        return csv_text([_line(verdict) for verdict in self.all], COLUMNS)


def judge(families: Iterable[Family], rows: Sequence[Row], registry: Registry) -> Verdicts:
    """A verdict on every number of the families.

    Args:
        families: see :func:`bench.report.papers.published.load_families`.
        rows: as :func:`bench.report.rows.detailed_rows` gives them; stale cells do not count.
        registry: resolves our names of their methods.

    Raises:
        UserError: a family names a protocol or a method that is not there.
    """
    judged_first = sorted(families, key=lambda family: family.reproduction is None)
    return Verdicts([_judge(f, number, rows, registry) for f in judged_first for number in f.references])


def _judge(family: Family, number: PublishedNumber, rows: Sequence[Row], registry: Registry) -> Verdict:
    protocol = load_protocol(family.reproduction.protocol) if family.reproduction else None
    dataset, metric = family.match_dataset(number.dataset), family.match_metric(number.metric)
    method = family.match_method(number)
    where = f"published family {family.key}: methods.{number.name}.ours"
    ours = method.ours and registry.resolve(method.ours, protocol.tuned if protocol else None, where=where)
    if metric.ours not in HEADERS:
        raise UserError(f"published family {family.key}: metrics.{number.metric}.ours: no metric {metric.ours!r} here")
    reasons = [
        "our method is a reconstruction from the abstract" if ours and ours.status == "reconstruction" else "",
        (number.note or "marked as not to be used") if not number.use else "",
        method.why_not,
        family.why_not,
        "the number of tasks is not stated" if number.n_tasks is None else "",
        dataset.why_not,
        metric.why_not,
    ]
    if not ours:
        reasons = ["no such method here"]
    why = "; ".join(dict.fromkeys(filter(None, reasons)))
    if why or not ours or not protocol or not family.reproduction:
        return Verdict(family, number, "not comparable", why)
    place = {
        "dataset": dataset.ours, "n_tasks": number.n_tasks, "protocol": protocol.key, "eval_split": "test",
        "variant": ours.variant, "class_order_seed": family.reproduction.class_order_seed,
    }  # fmt: skip
    found = [row for row in rows if all(row[name] == value for name, value in place.items())]
    values = tuple(r[metric.ours] for r in found if r["status"] == "done" and r[metric.ours] is not None)
    inferred = len(protocol.inferred)
    if not values:
        states = [row["status"] for row in found if row["status"] != "done"]
        told = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
        return Verdict(family, number, "not run", told, inferred=inferred)
    if len(values) < MIN_REPEATS or statistics.stdev(values) < 1e-9:
        few = "one repeat gives" if len(values) < MIN_REPEATS else "repeats that do not differ give"
        return Verdict(family, number, "not comparable", f"{few} no interval", values, inferred=inferred)
    low, high = prediction_interval(values, 1, CONFIDENCE)
    outcome: Outcome = "consistent" if low <= number.value <= high else "inconsistent"
    why = f"{inferred} settings inferred" if inferred else ""
    return Verdict(family, number, outcome, why, values, low, high, inferred)


def _about(verdict: Verdict) -> str:
    family, told = verdict.family, [verdict.family.about.strip()]
    if family.reproduction:
        told.append(
            f"Reproduced by protocol {family.reproduction.protocol}, class order {family.reproduction.class_order_seed}"
            f"; {len(load_protocol(family.reproduction.protocol).inferred)} of its settings are inferred, not stated."
        )
    return " ".join(told)


def _table(verdicts: list[Verdict]) -> str:
    import pandas as pd

    lines = []
    for v in verdicts:
        mean = f"{statistics.fmean(v.values):.1f}" if v.values else "-"
        lines.append(
            {
                "Method": v.family.title_of(v.number),
                "Dataset": v.number.dataset,
                "T": str(v.number.n_tasks or "?"),
                "Metric": HEADERS[v.number.metric],
                "Published": f"{v.number.value}",
                "Confidence": v.number.confidence,
                "n": str(len(v.values)),
                "Ours, mean": mean,
                "95 % prediction": "-" if v.low is None else f"{v.low:.1f} to {v.high:.1f}",
                "Verdict": v.outcome + (f" ({v.why})" if v.why else ""),
            }
        )
    return markdown_table(pd.DataFrame(lines))


def _line(v: Verdict) -> dict[str, object]:
    n, reproduction = v.number, v.family.reproduction
    return {
        "family": v.family.key, "dataset": n.dataset, "n_tasks": n.n_tasks, "method": n.name, "metric": n.metric,
        "published": n.value, "published_std": n.std, "verdict": v.outcome, "why": v.why, "n": len(v.values),
        "mean": statistics.fmean(v.values) if v.values else None,
        "sd": statistics.stdev(v.values) if len(v.values) > 1 else None,
        "low": v.low, "high": v.high, "protocol": reproduction and reproduction.protocol,
        "class_order_seed": reproduction and reproduction.class_order_seed, "inferred": v.inferred or None,
        "confidence": n.confidence, "source": "; ".join(v.family.sources[s] for s in n.source),
        "source_metric": n.source_metric, "note": n.note,
    }  # fmt: skip
