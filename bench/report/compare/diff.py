"""Two results folders compared cell by cell: same numbers, same weights, and if not, what else differs.

Cells are the same by their coordinates. What a cell's numbers rest on (code, protocol, machine and libraries) is
compared as well, because that is where one looks for the reason of a difference.
"""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from bench.common.errors import UserError
from bench.config.dotted import flat
from bench.records.metrics import a_last
from bench.records.record import COORDINATES, Record, counts_sha256, iter_records
from bench.report.rows import stream_title

PLACE = (*COORDINATES, "eval_split")
WORDS = ("title", "about", "seconds_per_step")  #: of a protocol: what no number depends on
LISTED = 20  #: how many lines of one kind are printed

Place = tuple[Any, ...]
Changes = dict[str, tuple[Any, Any]]  #: dotted name: values in A and in B


@dataclass(frozen=True)
class Side:
    """What of one record is compared."""

    status: str
    a_last: float | None  #: percent
    counts: str  #: checksum
    weights: str | None  #: digest of what was served last
    code: Any
    protocol: str  #: JSON
    environment: str  #: JSON
    written: str


@dataclass(frozen=True)
class Pair:
    """One cell that both folders have."""

    place: dict[str, Any]  #: coordinates
    a: Side
    b: Side

    @property
    def same(self) -> bool:
        """Both failed, or both have the same counts and served weights; a damaged record is never the same."""
        if "damaged" in (self.a.status, self.b.status) or self.a.status != self.b.status:
            return False
        return self.a.status == "failed" or (self.same_counts and self.same_weights)

    @property
    def same_counts(self) -> bool:
        """Whether every image count agrees."""
        return self.a.counts == self.b.counts

    @property
    def same_weights(self) -> bool:
        """Whether the served weights agree bit for bit; where one side does not know its digest, nothing differs."""
        return None in (self.a.weights, self.b.weights) or self.a.weights == self.b.weights

    @property
    def difference(self) -> float | None:
        """A_last in B minus that in A, in points."""
        return None if self.a.a_last is None or self.b.a_last is None else self.b.a_last - self.a.a_last

    @property
    def protocol(self) -> Changes:
        """Fields of the protocol that differ."""
        return changes(self.a.protocol, self.b.protocol)

    @property
    def environment(self) -> Changes:
        """What of the machine, the libraries or the commit differs."""
        return changes(self.a.environment, self.b.environment)

    def as_json(self) -> dict[str, Any]:
        """The pair for ``--json``."""
        return self.place | {
            "same": self.same,
            "status": [self.a.status, self.b.status],
            "a_last": [self.a.a_last, self.b.a_last],
            "difference": self.difference,
            "same_counts": self.same_counts,
            "same_weights": self.same_weights,
            "same_code": self.a.code == self.b.code,
            "protocol": self.protocol,
            "environment": self.environment,
        }


@dataclass(frozen=True)
class Difference:
    """Two results folders beside each other."""

    pairs: list[Pair]
    only_a: list[dict[str, Any]]  #: coordinates
    only_b: list[dict[str, Any]]
    notes: list[str]

    @property
    def same(self) -> bool:
        """Whether something was compared and all of it is the same; cells that one folder lacks do not count."""
        return bool(self.pairs) and all(pair.same for pair in self.pairs)

    def as_json(self) -> dict[str, Any]:
        """``clmerge diff --json``."""
        return {
            "same": self.same,
            "cells": [pair.as_json() for pair in self.pairs],
            "only_a": self.only_a,
            "only_b": self.only_b,
            "notes": self.notes,
        }

    def lines(self) -> Iterator[str]:
        """What a person reads: first how much is the same, then what differs, then why it may."""
        unequal = [pair for pair in self.pairs if not pair.same]
        yield f"{len(self.pairs)} cells in both: {len(self.pairs) - len(unequal)} the same, {len(unequal)} differ"
        yield from _some(map(_cell, unequal))
        yield from _by_method(unequal)
        for name, places in (("A", self.only_a), ("B", self.only_b)):
            if places:
                yield f"only in {name}: {len(places)} cells"
                streams = Counter(f"{stream_title(place)}, {place['variant']}" for place in places)
                yield from _some(f"{stream}: {n}" for stream, n in streams.items())
        whole = [pair for pair in self.pairs if "damaged" not in (pair.a.status, pair.b.status)]
        other_code = sum(pair.a.code != pair.b.code for pair in whole)
        if other_code:
            yield f"code differs in {other_code} of {len(whole)} cells"
        yield from _changed("protocol", whole, lambda pair: pair.protocol)
        yield from _changed("environment", whole, lambda pair: pair.environment)
        yield from self.notes


def compare(a: Path, b: Path) -> Difference:
    """Compare two results folders, those that hold ``runs/``.

    Raises:
        UserError: one of them has no records.
    """
    notes: list[str] = []
    sides = [_sides(folder, name, notes) for folder, name in ((a, "A"), (b, "B"))]
    first, second = sides
    both = sorted(first.keys() & second.keys())
    if not both:
        notes.append("nothing could be compared: no cell of one folder has the coordinates of a cell of the other")
    return Difference(
        [Pair(_named(place), first[place], second[place]) for place in both],
        [_named(place) for place in sorted(first.keys() - second.keys())],
        [_named(place) for place in sorted(second.keys() - first.keys())],
        notes,
    )


@lru_cache(maxsize=4096)  # thousands of cells share a handful of protocols and machines
def changes(a: str, b: str) -> Changes:
    """Dotted names whose values differ between two JSON objects; what is not there is ``None``."""
    if a == b:
        return {}
    one, other = (dict(flat(json.loads(text))) for text in (a, b))
    return {name: (one.get(name), other.get(name)) for name in {**one, **other} if one.get(name) != other.get(name)}


def _sides(folder: Path, name: str, notes: list[str]) -> dict[Place, Side]:
    sides: dict[Place, Side] = {}
    lost = twice = 0
    for record in iter_records(folder):
        place = tuple(record["coordinates"].get(key) for key in PLACE)
        if None in place:
            lost += 1
            continue
        side = _side(record)
        twice += place in sides
        # Two records with the same coordinates: what a protocol's name stands for has changed between them.
        if place not in sides or side.written > sides[place].written:
            sides[place] = side
    if not sides:
        raise UserError(f"{folder / 'runs'}: no records; name a results folder, the one that holds runs/")
    if lost:
        notes.append(f"{name}: {lost} damaged records do not say which cell they are")
    if twice:
        notes.append(f"{name}: {twice} records have the coordinates of another; the newest one was compared")
    return sides


def _side(record: Record) -> Side:
    done = record["status"] == "done"
    protocol = {key: value for key, value in (record.get("protocol") or {}).items() if key not in WORDS}
    return Side(
        record["status"],
        a_last(record["counts"]) if done else None,
        counts_sha256(record) if done else "",
        record.get("digest") if done else None,
        record.get("code"),
        json.dumps(protocol, sort_keys=True),
        json.dumps(record.get("environment") or {}, sort_keys=True),
        str(record.get("written") or ""),
    )


def _named(place: Place) -> dict[str, Any]:
    return dict(zip(PLACE, place, strict=True))


def _cell(pair: Pair) -> str:
    place = pair.place
    where = f"{stream_title(place)}: {place['variant']} c{place['class_order_seed']}-r{place['run_seed']}"
    if pair.difference is None:
        return f"{where}: {pair.a.status} in A, {pair.b.status} in B"
    what = "counts" if not pair.same_counts else "weights differ, counts are the same"
    return f"{where}: A_last {pair.a.a_last:.2f} in A, {pair.b.a_last:.2f} in B ({pair.difference:+.2f}); {what}"


def _by_method(pairs: Iterable[Pair]) -> Iterator[str]:
    """The paired differences of every method of a stream."""
    groups: dict[str, list[float]] = {}
    for pair in pairs:
        if pair.difference is not None:
            groups.setdefault(f"{stream_title(pair.place)}: {pair.place['variant']}", []).append(pair.difference)
    if groups:
        yield "A_last of the cells that differ, B minus A, paired:"
    for where, differences in groups.items():
        spread = f", {min(differences):+.2f} to {max(differences):+.2f}" if len(differences) > 1 else ""
        yield f"  {where}: mean {statistics.fmean(differences):+.2f} over {len(differences)}{spread}"


def _changed(what: str, pairs: Iterable[Pair], changes_of: Callable[[Pair], Mapping[str, Any]]) -> Iterator[str]:
    counted = Counter(
        f"{name}: {json.dumps(one)} in A, {json.dumps(other)} in B"
        for pair in pairs
        for name, (one, other) in changes_of(pair).items()
    )
    if counted:
        yield f"{what} differs:"
        yield from _some(f"{text} ({n} cells)" for text, n in counted.most_common())


def _some(lines: Iterable[str]) -> Iterator[str]:
    every = list(lines)
    yield from (f"  {line}" for line in every[:LISTED])
    if len(every) > LISTED:
        yield f"  ... and {len(every) - LISTED} more (--json lists all)"
