"""The one frame behind every format of a paper's table, its printed blocks, and the notes under them.

The frame is tidy: a line a printed value, with the column it stands in. A column holds measured values or published
ones, never both, because its first heading says which.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product
from typing import TYPE_CHECKING, Any

from bench.report.papers.cells import STATES, Entry, Measured, Place
from bench.report.papers.published import CONFIDENCE, Family, PublishedNumber, confidence_notes
from bench.report.rows import footnotes
from bench.report.tables import HEADERS

if TYPE_CHECKING:
    import pandas as pd

HEADINGS = ("kind", "dataset", "tasks", "trainer", "start", "metric_title")
COLUMNS = (
    "block", "kind", "label", "method", "dataset_key", "n_tasks", "protocol", "trainer", "start", "metric", "n",
    "wanted", *STATES, "mean", "sd", "text", "family", "confidence", "source", "source_metric", "note",
)  # fmt: skip
#: headings as narrow as papers have them; a note spells them out
SHORT = {
    "avg_acc": "A_avg",
    "learn_acc": "A_learn",
    "forgetting": "F",
    "forgetting_taskaware": "F_aware",
    "a_last_taskaware": "A_aware",
}
STATE_WORDS = {
    "stale": "stale (their code has changed since)",
    "outdated": "outdated and not counted (what they were asked for has changed since)",
    "failed": "failed",
    "damaged": "damaged and not counted",
    "missing": "not run",
}


def lines(measured: Measured) -> list[dict[str, Any]]:
    """The tidy frame's: :data:`COLUMNS` for machines and :data:`HEADINGS` for people, in the order of print."""
    return [*_beside(measured), *_below(measured)]


def _beside(measured: Measured) -> Iterable[dict[str, Any]]:
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


def _below(measured: Measured) -> Iterable[dict[str, Any]]:
    for family, metric in product((measured.families[key] for key in measured.table.below), measured.table.metrics):
        for place in {(p.dataset.key, p.n_tasks): p for p in measured.places}.values():
            for number in measured.on_streams(family, metric, [place]):
                own = {"block": f"Published, {family.title}", "label": family.title_of(number)}
                yield own | _published(family, number, place, metric) | {"trainer": "", "start": ""}


def heading(metric: str) -> str:
    """A metric over its column."""
    return SHORT.get(metric, HEADERS[metric])


def _place(place: Place, metric: str) -> dict[str, Any]:
    return {
        "dataset": place.title, "n_tasks": place.n_tasks, "tasks": f"T = {place.n_tasks}",
        "trainer": place.trainer or "", "start": place.start or "", "metric": metric, "metric_title": heading(metric),
    }  # fmt: skip


def _measured(entry: Entry, metric: str, with_states: bool) -> dict[str, Any]:
    mean, sd = entry.mean_sd(metric)
    return _place(entry.place, metric) | {
        "kind": f"Measured, protocol {entry.place.protocol.key}", "method": entry.method.variant,
        "dataset_key": entry.place.dataset.key, "protocol": entry.place.protocol.key,
        "n": len(entry.measured), "wanted": len(entry.cells), **{state: entry.states[state] for state in STATES},
        "mean": mean, "sd": sd, "text": entry.text(metric, with_states),
    }  # fmt: skip


def _published(family: Family, number: PublishedNumber, place: Place, metric: str) -> dict[str, Any]:
    spread = "" if number.std is None else f" ± {number.std}"
    return _place(place, metric) | {
        "kind": f"Published, {family.title}", "method": number.name, "dataset_key": number.dataset,
        "mean": number.value, "sd": number.std, "text": f"{number.value}{spread}{CONFIDENCE[number.confidence][0]}",
        "family": family.key, "confidence": number.confidence,
        "source": "; ".join(family.sources[s] for s in number.source), "source_metric": number.source_metric,
        "note": number.note,
    }  # fmt: skip


def blocks(measured: Measured) -> dict[str, pd.DataFrame]:
    """The printed tables by title: strings, a row a label, columns under their headings.

    A heading that is the same over a whole table stands in its title instead.
    """
    import pandas as pd

    found = {}
    for name, mine in pd.DataFrame(lines(measured)).groupby("block", sort=False):
        varying = [h for h in HEADINGS if h == "kind" or mine[h].nunique() > 1]
        constant = [str(mine[h].iloc[0]) for h in HEADINGS if h not in varying]
        title = ", ".join(dict.fromkeys(text for text in (str(name), *constant) if text))
        # In the order of the table's file, measured columns first: not every line has a value in every column.
        ranks = [list(dict.fromkeys(mine[h])) for h in varying]
        columns = sorted(
            set(mine[varying].itertuples(index=False, name=None)),
            key=lambda column: [rank.index(text) for rank, text in zip(ranks, column, strict=True)],
        )
        texts = {(line["label"], *(line[h] for h in varying)): line["text"] for line in mine.to_dict("records")}
        labels = list(dict.fromkeys(mine["label"]))
        cells = [[texts.get((label, *column), "") for column in columns] for label in labels]
        found[title] = pd.DataFrame(cells, index=labels, columns=pd.MultiIndex.from_tuples(columns))
    return found


def notes(measured: Measured) -> list[str]:
    """What must be said under a table: repeats, gaps, protocols, where published numbers come from, and the marks."""
    table, states = measured.table, measured.states
    order = "" if table.class_order_seed is None else f", class order {table.class_order_seed}"
    shown = [f"{heading(metric)}: {HEADERS[metric].lower()}" for metric in table.metrics if metric in SHORT]
    told = [
        f"Mean ± sample standard deviation over repeats {table.repeats}{order} (n where there are fewer); accuracies "
        f"in percent, differences in points.{''.join(f' {text}.' for text in shown)}"
    ]
    gaps = [f"{states[state]} {STATE_WORDS[state]}" for state in STATES[1:] if states[state]]
    if gaps:
        told.append(f"Of {len(measured.cells)} cells: {', '.join(gaps)}.")
    protocols = {place.protocol.key: place.protocol for place in measured.places}
    for protocol in protocols.values():
        inferred = f"; {len(protocol.inferred)} of its settings are inferred" if protocol.inferred else ""
        told.append(f"Protocol {protocol.key}: {protocol.title}{inferred}.")
    numbers = []
    for family in measured.families.values():
        mine = _numbers(measured, family)
        numbers += mine
        told += _family_notes(measured, family, mine) if mine else []
    told += confidence_notes(numbers)
    told += footnotes({"method_status": entry.method.status} for row in measured.entries for entry in row)
    if not measured.varies:
        spelled = (f"{measured.label(i)} = {row[0].method.variant}" for i, row in enumerate(measured.entries))
        told.append(f"Spelled out: {'; '.join(spelled)}.")
    return [*told, *table.notes]


def _numbers(measured: Measured, family: Family) -> list[PublishedNumber]:
    """The family's numbers that the table shows."""
    table = measured.table
    if family.key in table.below:
        return [n for metric in table.metrics for n in measured.on_streams(family, metric, measured.places)]
    entries = [entry for row in measured.entries for entry in row]
    shown = (measured.published(family, entry, metric) for entry, metric in product(entries, table.metrics))
    return [number for number in shown if number is not None]


def _family_notes(measured: Measured, family: Family, numbers: list[PublishedNumber]) -> list[str]:
    paper = f" ({family.paper})" if family.paper else ""
    judged = family.reproduction and all(
        place.protocol.key == family.reproduction.protocol for place in measured.places
    )
    compared = (
        f"are judged in verdicts.md, against this protocol with class order {family.reproduction.class_order_seed}"
        if judged and family.reproduction
        else "are not comparable with the measured ones: "
        + (family.why_not or "the protocol of these columns is another")
    )
    told = [f"Published, {family.title}{paper}: {family.about.strip()} These numbers {compared}."]
    reasons: dict[str, list[str]] = {}
    for number in numbers:
        matches = {
            number.dataset: family.match_dataset(number.dataset),
            family.title_of(number): family.match_method(number),
            heading(number.metric): family.match_metric(number.metric),
        }
        for name, match in matches.items():
            if match.why_not:
                reasons.setdefault(f"not comparable: {match.why_not}", []).append(name)
        if number.note:
            reasons.setdefault(number.note, []).append(f"{family.title_of(number)} on {number.dataset}")
    told += [f"{family.title}: {', '.join(dict.fromkeys(names))}: {reason}." for reason, names in reasons.items()]
    nowhere: dict[str, list[str]] = {}
    for metric in measured.table.metrics:
        for number in measured.on_streams(family, metric, measured.places, stated=False):
            name = f"{family.title_of(number)} on {number.dataset}, {heading(metric)} {number.value}"
            nowhere.setdefault(number.note or "the number of tasks is not stated", []).append(name)
    return told + [f"{family.title}, in no column: {'; '.join(names)} ({why})." for why, names in nowhere.items()]
