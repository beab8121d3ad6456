"""Is a published number consistent with what is measured here?

A number is judged only under its family's reproduction protocol and class order: it is consistent where it lies in the
95 % prediction interval of our repeats for one more run. Everything else is not run, or not comparable, and why.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from bench.common.csv_text import csv_text
from bench.common.errors import UserError
from bench.config.files import load_protocol
from bench.registry import Registry
from bench.report.columns import BY_KEY, METRICS
from bench.report.compare.verify import prediction_interval
from bench.report.papers.published import PublishedFamily, PublishedNumber
from bench.report.rows import Row
from bench.report.section import Document, TableSection

CONFIDENCE = 0.95
MIN_REPEATS = 2
Judgement = Literal["consistent", "inconsistent", "not run", "not comparable"]
JUDGEMENTS: tuple[Judgement, ...] = ("consistent", "inconsistent", "not run", "not comparable")
HEADS = (
    "Method", "Dataset", "T", "Metric", "Published", "Confidence", "n", "Ours, mean", "95 % prediction", "Verdict",
)  # fmt: skip
COLUMNS = (
    "family", "dataset", "n_tasks", "method", "metric", "published", "published_std", "verdict", "why", "n", "mean",
    "sd", "low", "high", "protocol", "class_order_seed", "inferred", "confidence", "source",
    "source_metric", "note",
)  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """One published number and what our runs say of it; percent."""

    family: PublishedFamily
    number: PublishedNumber
    judgement: Judgement
    why: str = ""
    values: tuple[float, ...] = ()  #: ours, one a repeat
    low: float | None = None
    high: float | None = None
    inferred: int = 0  #: settings of the reproduction protocol that the paper does not state


@dataclass(frozen=True)
class Verdicts:
    """Of every published number."""

    all: list[Verdict]

    def counts(self) -> dict[Judgement, int]:
        """How many there are of each judgement."""
        return {judgement: sum(v.judgement == judgement for v in self.all) for judgement in JUDGEMENTS}

    def document(self) -> Document:
        """The rule, the counts, and a table a family."""
        counted = ", ".join(f"{count} {judgement}" for judgement, count in self.counts().items())
        rule = (
            "A published number is judged under its family's reproduction protocol and class order alone: consistent "
            f"where it lies in the {CONFIDENCE:.0%} prediction interval of our repeats for one more run (mean ± t s "
            f"√(1 + 1/n), at least {MIN_REPEATS} repeats). Of numbers that agree, about {1 - CONFIDENCE:.0%} fall "
            "outside by chance. A published mean of several runs is judged as one run, which is lenient."
        )
        families: dict[str, list[Verdict]] = {}
        for verdict in self.all:
            families.setdefault(verdict.family.key, []).append(verdict)
        sections = [
            TableSection(
                verdicts[0].family.title, [(head,) for head in HEADS], [_printed(v) for v in verdicts],
                verdicts[0].family.doubts, _about(verdicts[0].family),
            )
            for verdicts in families.values()
        ]  # fmt: skip
        return Document("Published numbers", sections, about=f"{counted}.\n\n{rule}")

    def csv(self) -> str:
        """A line a published number, unrounded."""
        return csv_text([_line(verdict) for verdict in self.all], COLUMNS)


def judge(families: Iterable[PublishedFamily], rows: Sequence[Row], registry: Registry) -> Verdicts:
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


def _judge(family: PublishedFamily, number: PublishedNumber, rows: Sequence[Row], registry: Registry) -> Verdict:
    protocol = load_protocol(family.reproduction.protocol) if family.reproduction else None
    dataset, metric = family.match_dataset(number.dataset), family.match_metric(number.metric)
    method = family.match_method(number)
    where = f"published family {family.key}: methods.{number.name}.ours"
    ours = method.ours and registry.resolve(method.ours, protocol.tuned if protocol else None, where=where)
    if metric.ours not in METRICS:
        raise UserError(f"published family {family.key}: metrics.{number.metric}.ours: no metric {metric.ours!r} here")
    if not ours:
        return Verdict(family, number, "not comparable", "no such method here")
    reasons = [
        "our method is a reconstruction from the abstract" if ours.status == "reconstruction" else "",
        (number.note or "marked as not to be used") if not number.use else "",
        method.why_not,
        family.why_not,
        "the number of tasks is not stated" if number.n_tasks is None else "",
        dataset.why_not,
        metric.why_not,
    ]
    why = "; ".join(dict.fromkeys(filter(None, reasons)))
    if why or not protocol or not family.reproduction:
        return Verdict(family, number, "not comparable", why)
    place = {
        "dataset": dataset.ours, "n_tasks": number.n_tasks, "protocol": protocol.key, "eval_split": "test",
        "variant": ours.variant, "class_order_seed": family.reproduction.class_order_seed,
    }  # fmt: skip
    repeats = [row for row in rows if all(row[name] == value for name, value in place.items())]
    return _compared(family, number, repeats, metric.ours, len(protocol.inferred))


def _compared(
    family: PublishedFamily, number: PublishedNumber, repeats: Sequence[Row], metric: str, inferred: int
) -> Verdict:
    """What our repeats say of a number that they can be compared with; only those that are done count."""
    values = tuple(r[metric] for r in repeats if r["status"] == "done" and r[metric] is not None)
    if not values:
        states = [row["status"] for row in repeats if row["status"] != "done"]
        counted = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
        return Verdict(family, number, "not run", counted, inferred=inferred)
    if len(values) < MIN_REPEATS or statistics.stdev(values) < 1e-9:
        few = "one repeat gives" if len(values) < MIN_REPEATS else "repeats that do not differ give"
        return Verdict(family, number, "not comparable", f"{few} no interval", values, inferred=inferred)
    low, high = prediction_interval(values, 1, CONFIDENCE)
    judgement: Judgement = "consistent" if low <= number.value <= high else "inconsistent"
    why = f"{inferred} settings inferred" if inferred else ""
    return Verdict(family, number, judgement, why, values, low, high, inferred)


def _about(family: PublishedFamily) -> str:
    about = family.about.strip()
    if not family.reproduction:
        return about
    inferred = len(load_protocol(family.reproduction.protocol).inferred)
    return (
        f"{about} Reproduced by protocol {family.reproduction.protocol}, class order "
        f"{family.reproduction.class_order_seed}; {inferred} of its settings are inferred, not stated."
    )


def _printed(verdict: Verdict) -> list[str]:
    """The texts under :data:`HEADS`."""
    number, values = verdict.number, verdict.values
    return [
        verdict.family.title_of(number),
        number.dataset,
        str(number.n_tasks or "?"),
        BY_KEY[number.metric].heading,
        f"{number.value}",
        number.confidence,
        str(len(values)),
        f"{statistics.fmean(values):.1f}" if values else "-",
        "-" if verdict.low is None else f"{verdict.low:.1f} to {verdict.high:.1f}",
        verdict.judgement + (f" ({verdict.why})" if verdict.why else ""),
    ]


def _line(v: Verdict) -> dict[str, object]:
    n, reproduction = v.number, v.family.reproduction
    return {
        "family": v.family.key, "dataset": n.dataset, "n_tasks": n.n_tasks, "method": n.name, "metric": n.metric,
        "published": n.value, "published_std": n.std, "verdict": v.judgement, "why": v.why, "n": len(v.values),
        "mean": statistics.fmean(v.values) if v.values else None,
        "sd": statistics.stdev(v.values) if len(v.values) > 1 else None,
        "low": v.low, "high": v.high, "protocol": reproduction and reproduction.protocol,
        "class_order_seed": reproduction and reproduction.class_order_seed, "inferred": v.inferred or None,
        "confidence": n.confidence, "source": "; ".join(v.family.sources[s] for s in n.source),
        "source_metric": n.source_metric, "note": n.note,
    }  # fmt: skip
