"""The one frame behind every format of a paper's table, its printed blocks, and the notes under them.

The frame is tidy: a line a printed value, with the column it stands in. A column holds measured values or published
ones, never both, because its first heading says which.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product
from typing import Any

from bench.report.columns import BY_KEY
from bench.report.papers.cells import STATES, MeasuredTable, RowAtPlace, TablePlace
from bench.report.papers.published import CONFIDENCE, PublishedFamily, PublishedNumber, confidence_notes
from bench.report.rows import footnotes, grouped
from bench.report.section import TableSection

HEADINGS = ("kind", "dataset", "tasks", "trainer", "start", "metric_title")
COLUMNS = (
    "block", "kind", "label", "method", "dataset_key", "n_tasks", "protocol", "trainer", "start", "metric", "n",
    "wanted", *STATES, "mean", "sd", "text", "family", "confidence", "source", "source_metric", "note",
)  # fmt: skip
STATE_WORDS = {
    "stale": "stale (their code has changed since)",
    "outdated": "outdated and not counted (what they were asked for has changed since)",
    "failed": "failed",
    "damaged": "damaged and not counted",
    "missing": "not run",
}


def lines(measured: MeasuredTable) -> list[dict[str, Any]]:
    """The tidy frame's: :data:`COLUMNS` for machines and :data:`HEADINGS` for people, in the order of print."""
    return [*_beside(measured), *_below(measured)]


def _beside(measured: MeasuredTable) -> Iterable[dict[str, Any]]:
    table = measured.table
    for i, row in enumerate(measured.entries):
        label = measured.label(i)
        for entry in row:
            block = entry.place.title if table.per_dataset else ""
            for metric in table.metrics:
                yield {"block": block, "label": label} | _measured(entry, metric, metric == table.metrics[0])
        for family, entry, metric in product((measured.families[key] for key in table.beside), row, table.metrics):
            number = measured.published(family, entry, metric)
            if number is not None:
                block = entry.place.title if table.per_dataset else ""
                yield {"block": block, "label": label} | _published(family, number, entry.place, metric)


def _below(measured: MeasuredTable) -> Iterable[dict[str, Any]]:
    for family, metric in product((measured.families[key] for key in measured.table.below), measured.table.metrics):
        for place in {(p.dataset.key, p.n_tasks): p for p in measured.places}.values():
            for number in measured.on_streams(family, metric, [place]):
                identity = {"block": f"Published, {family.title}", "label": family.title_of(number)}
                yield identity | _published(family, number, place, metric) | {"trainer": "", "start": ""}


def _place(place: TablePlace, metric: str) -> dict[str, Any]:
    return {
        "dataset": place.title, "n_tasks": place.n_tasks, "tasks": f"T = {place.n_tasks}",
        "trainer": place.trainer or "", "start": place.start or "", "metric": metric,
        "metric_title": BY_KEY[metric].narrow,
    }  # fmt: skip


def _measured(entry: RowAtPlace, metric: str, with_states: bool) -> dict[str, Any]:
    mean, sd = entry.mean_sd(metric)
    return _place(entry.place, metric) | {
        "kind": f"Measured, protocol {entry.place.protocol.key}", "method": entry.method.variant,
        "dataset_key": entry.place.dataset.key, "protocol": entry.place.protocol.key,
        "n": len(entry.measured), "wanted": len(entry.cells), **{state: entry.states[state] for state in STATES},
        "mean": mean, "sd": sd, "text": entry.text(metric, with_states),
    }  # fmt: skip


def _published(family: PublishedFamily, number: PublishedNumber, place: TablePlace, metric: str) -> dict[str, Any]:
    spread = "" if number.std is None else f" ± {number.std}"
    return _place(place, metric) | {
        "kind": f"Published, {family.title}", "method": number.name, "dataset_key": number.dataset,
        "mean": number.value, "sd": number.std, "text": f"{number.value}{spread}{CONFIDENCE[number.confidence][0]}",
        "family": family.key, "confidence": number.confidence,
        "source": "; ".join(family.sources[s] for s in number.source), "source_metric": number.source_metric,
        "note": number.note,
    }  # fmt: skip


def sections(measured: MeasuredTable) -> list[TableSection]:
    """The printed tables: a row a label, columns under their headings.

    A heading that is the same over a whole table stands in its title instead.
    """
    return [_section(name, block) for (name,), block in grouped(lines(measured), ("block",)).items()]


def _section(name: str, block: list[dict[str, Any]]) -> TableSection:
    orders = {heading: list(dict.fromkeys(line[heading] for line in block)) for heading in HEADINGS}
    varying = [heading for heading in HEADINGS if heading == "kind" or len(orders[heading]) > 1]
    constant = [orders[heading][0] for heading in HEADINGS if heading not in varying]
    texts = {(line["label"], *(line[heading] for heading in varying)): line["text"] for line in block}
    # In the order of the table's file, measured columns first: not every line has a value in every column.
    columns = sorted(
        {key[1:] for key in texts},
        key=lambda column: [orders[heading].index(text) for heading, text in zip(varying, column, strict=True)],
    )
    labels = dict.fromkeys(line["label"] for line in block)
    title = ", ".join(dict.fromkeys(text for text in (name, *constant) if text))
    heads = [(*[""] * (len(varying) - 1), "Method"), *columns]
    return TableSection(title, heads, [[label, *(texts.get((label, *c), "") for c in columns)] for label in labels])


def notes(measured: MeasuredTable) -> list[str]:
    """What must be said under a table: repeats, gaps, protocols, where published numbers come from, and the marks."""
    table, states = measured.table, measured.states
    order = "" if table.class_order_seed is None else f", class order {table.class_order_seed}"
    metrics = [BY_KEY[metric] for metric in table.metrics]
    spelled = [f" {metric.narrow}: {metric.heading.lower()}." for metric in metrics if metric.short]
    said = [
        f"Mean ± sample standard deviation over repeats {table.repeats}{order} (n where there are fewer); accuracies "
        f"in percent, differences in points.{''.join(spelled)}"
    ]
    gaps = [f"{states[state]} {STATE_WORDS[state]}" for state in STATES[1:] if states[state]]
    if gaps:
        said.append(f"Of {len(measured.cells)} cells: {', '.join(gaps)}.")
    for protocol in {place.protocol.key: place.protocol for place in measured.places}.values():
        inferred = f"; {len(protocol.inferred)} of its settings are inferred" if protocol.inferred else ""
        said.append(f"Protocol {protocol.key}: {protocol.title}{inferred}.")
    shown = []
    for family in measured.families.values():
        numbers = _numbers(measured, family)
        shown += numbers
        said += _family_notes(measured, family, numbers) if numbers else []
    said += confidence_notes(shown)
    said += footnotes({"method_status": entry.method.status} for row in measured.entries for entry in row)
    if not measured.varies:
        variants = (f"{measured.label(i)} = {row[0].method.variant}" for i, row in enumerate(measured.entries))
        said.append(f"Spelled out: {'; '.join(variants)}.")
    return [*said, *table.notes]


def _numbers(measured: MeasuredTable, family: PublishedFamily) -> list[PublishedNumber]:
    """The family's numbers that the table shows."""
    table = measured.table
    if family.key in table.below:
        return [n for metric in table.metrics for n in measured.on_streams(family, metric, measured.places)]
    entries = [entry for row in measured.entries for entry in row]
    shown = (measured.published(family, entry, metric) for entry, metric in product(entries, table.metrics))
    return [number for number in shown if number is not None]


def _family_notes(measured: MeasuredTable, family: PublishedFamily, numbers: list[PublishedNumber]) -> list[str]:
    """What the family is, whether its numbers can be compared, and what is to be said of single ones."""
    paper = f" ({family.paper})" if family.paper else ""
    said = [f"Published, {family.title}{paper}: {family.about.strip()} These numbers {_comparable(measured, family)}."]
    reasons: dict[str, list[str]] = {}
    for number in numbers:
        matches = {
            number.dataset: family.match_dataset(number.dataset),
            family.title_of(number): family.match_method(number),
            BY_KEY[number.metric].narrow: family.match_metric(number.metric),
        }
        for name, match in matches.items():
            if match.why_not:
                reasons.setdefault(f"not comparable: {match.why_not}", []).append(name)
        if number.note:
            reasons.setdefault(number.note, []).append(f"{family.title_of(number)} on {number.dataset}")
    said += [f"{family.title}: {', '.join(dict.fromkeys(names))}: {reason}." for reason, names in reasons.items()]
    nowhere: dict[str, list[str]] = {}
    for metric in measured.table.metrics:
        for number in measured.on_streams(family, metric, measured.places, stated=False):
            name = f"{family.title_of(number)} on {number.dataset}, {BY_KEY[metric].narrow} {number.value}"
            nowhere.setdefault(number.note or "the number of tasks is not stated", []).append(name)
    return said + [f"{family.title}, in no column: {'; '.join(names)} ({why})." for why, names in nowhere.items()]


def _comparable(measured: MeasuredTable, family: PublishedFamily) -> str:
    reproduction = family.reproduction
    if reproduction and all(place.protocol.key == reproduction.protocol for place in measured.places):
        return f"are judged in verdicts.md, against this protocol with class order {reproduction.class_order_seed}"
    why = family.why_not or "the protocol of these columns is another"
    return f"are not comparable with the measured ones: {why}"
