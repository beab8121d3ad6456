"""Values chosen on validation streams, with the same number of trials for every method. Torch-free.

Trial 0 are the protocol's own values. The others are points of one scrambled Sobol sequence, the same for every method,
so that methods that share an axis (the learning rate) see the same values of it.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydantic
import yaml

from bench.common.errors import UserError
from bench.common.files import write_atomic
from bench.config.dotted import check_key, put
from bench.config.files import load_protocol, yaml_files
from bench.config.schema import ProtocolConfig, Section, SuiteConfig
from bench.plan.cell import Cell
from bench.plan.grid import expand
from bench.records import metrics
from bench.records.record import read_record
from bench.registry import Registry
from bench.registry.resolved import Method
from bench.registry.spelling import parse, spell

LR = "train.lr"
LR_SPAN = (0.1, 3.0)  #: times the protocol's: merging and sequential training differ by so much in their best rate
#: the same for all methods: a head, or a budget, of one's own makes any method look good
SHARED = ("head", "train.head_lr", "train.epochs", "train.passes", "threads", "val_fraction", "class_order")
AXES = 16  #: at most; fixed, because the sequence depends on how many there are


class Range(Section):
    """Between two positive numbers, evenly in the logarithm; whole numbers where both are."""

    low: int | float = pydantic.Field(gt=0)
    high: int | float = pydantic.Field(gt=0)


Axis = Range | list[Any]


class SpaceConfig(Section):
    """``--space FILE``: axes by name, a dotted protocol field or an option; null takes one out."""

    all: dict[str, Axis | None] = {}  #: of every method that trains a backbone
    methods: dict[str, dict[str, Axis | None]] = {}  #: above ``all``


@dataclass(frozen=True)
class Point:
    """One point of the search, on every stream that is tuned on."""

    values: dict[str, Any]  #: by axis; none at the first
    cells: list[Cell]


@dataclass(frozen=True)
class Search:
    """The points of one method; none where it has nothing to tune."""

    name: str  #: its entry in ``per_method``
    points: list[Point]


@dataclass(frozen=True)
class Choice:
    """What a search found. Scores are mean A_last in percent, None where a cell of the trial failed."""

    name: str
    values: dict[str, Any] | None  #: {}: the protocol's own; None: no trial finished, or there was none
    score: float | None
    default: float | None
    spent: int


def plan_searches(
    suite: SuiteConfig, trials: int, space: SpaceConfig, registry: Registry, data: Path, folders: list[Path]
) -> list[Search]:
    """The cells of every trial of every method.

    Args:
        suite: one protocol, ``eval_split="val"``; its seeds are the repeats to tune on.
        trials: of each method that has something to tune.
        space: axes in place of those that the methods declare.
        registry: of plugins.
        data: the data folder.
        folders: that are searched for datasets.

    Raises:
        UserError: as :func:`bench.plan.grid.expand`; an axis that is unknown, shared by all methods, or upside down.
    """
    protocol = load_protocol(suite.protocols[0])
    for name in space.all:
        if not _is_field(name):
            raise UserError(f"--space: all: {name}: only a field of the protocol is every method's; write it by method")
    for name in space.methods:
        if name not in registry.methods:
            registry.resolve(name, protocol.tuned, where="--space: methods")
    searches: dict[str, Search] = {}
    for spelling in suite.methods:
        method, written = registry.resolve(spelling, protocol.tuned), parse(spelling)
        axes = axes_of(method, spelling, protocol, space)
        at: list[Point] = []
        for values in points(axes, trials) if axes else []:
            fields = {name: value for name, value in values.items() if _is_field(name)}
            options = {name: str(value) for name, value in values.items() if not _is_field(name)}
            spelled = spell(dataclasses.replace(written, options={**written.options, **options}))
            cells, _ = expand(suite.model_copy(update={"methods": [spelled]}), registry, data, folders, fields)
            at.append(Point(values, cells))
        searches.setdefault(method.key, Search(method.key, at))
    return list(searches.values())


def axes_of(method: Method, spelling: str, protocol: ProtocolConfig, space: SpaceConfig) -> dict[str, Axis]:
    """What is searched, the learning rate first; not what the spelling fixes.

    Raises:
        UserError: an axis that is unknown, shared by all methods, empty or upside down, or too many of them.
    """
    declared: dict[str, Any] = {}
    if method.trainer.adapt:
        declared[LR] = Range(low=LR_SPAN[0] * protocol.train.lr, high=LR_SPAN[1] * protocol.train.lr)
        declared |= space.all
    sides = {"trainer": method.trainer.options(), "rule": method.rule.options()}
    both = sides["trainer"].keys() & sides["rule"].keys()
    for side, options in sides.items():
        for name, field in options.items():
            search = field.metadata["search"]
            if search is not None:
                axis = Range(low=search[0], high=search[1]) if isinstance(search, tuple) else search
                declared[f"{side}.{name}" if name in both else name] = axis
    declared |= space.methods.get(method.key, {})
    spelled = parse(spelling).options
    axes = {name: axis for name, axis in declared.items() if axis is not None and name not in spelled}
    for name, axis in axes.items():
        where = f"--space: {method.key}: {name}"
        if _is_field(name):
            check_key(ProtocolConfig, name, where)
            if any(name == shared or name.startswith(f"{shared}.") for shared in SHARED):
                raise UserError(f"{where}: is one for all methods, and never tuned for one of them")
        if axis == [] or (isinstance(axis, Range) and axis.low > axis.high):
            raise UserError(f"{where}: nothing lies between {axis}; give low and high, or a list of values")
    if len(axes) > AXES:
        raise UserError(f"--space: {method.key}: {len(axes)} axes; at most {AXES}")
    return axes


def points(axes: Mapping[str, Axis], trials: int) -> list[dict[str, Any]]:
    """The values of each trial, the first without any; always the same ones."""
    from scipy.stats import qmc

    rows = qmc.Sobol(AXES, scramble=True, seed=0).random(2 ** math.ceil(math.log2(max(trials, 2))))
    return [{}, *({name: _at(axis, u) for (name, axis), u in zip(axes.items(), row)} for row in rows[: trials - 1])]  # noqa: B905


def _at(axis: Axis, u: float) -> Any:
    """The value at u in [0, 1), to three digits, so that what is printed is what was run."""
    if isinstance(axis, list):
        return axis[int(u * len(axis))]
    value = axis.low * (axis.high / axis.low) ** u
    whole = isinstance(axis.low, int) and isinstance(axis.high, int)
    return round(value) if whole else min(max(float(f"{value:.3g}"), axis.low), axis.high)


def _is_field(name: str) -> bool:
    """Whether an axis is a field of the protocol; options have no dot but after ``trainer`` and ``rule``."""
    return "." in name and name.partition(".")[0] not in ("trainer", "rule")


def choose(search: Search, results: Path) -> Choice:
    """The trial of the best mean A_last; of equal ones the first. A failed trial counts as spent."""
    scores = [_score(point, results) for point in search.points]
    best: int | None = None
    for i, score in enumerate(scores):
        if score is not None and (best is None or score > (scores[best] or 0.0)):
            best = i
    if best is None:
        return Choice(search.name, None, None, None, len(scores))
    return Choice(search.name, search.points[best].values, scores[best], scores[0], len(scores))


def _score(point: Point, results: Path) -> float | None:
    records = [read_record(results / "runs" / cell.id / "cell.json") for cell in point.cells]
    values = [metrics.a_last(record["counts"]) if record["status"] == "done" else None for record in records]
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if len(known) == len(values) else None


def check_out(out: Path, base: str) -> None:
    """Whether the protocol may be written there.

    Raises:
        UserError: no YAML file, the base itself, a preset's name, or no such folder.
    """
    if out.suffix not in (".yaml", ".yml"):
        raise UserError(f"--out {out}: name a .yaml file")
    if base.endswith((".yaml", ".yml")) and out.resolve() == Path(base).expanduser().resolve():
        raise UserError(f"--out {out}: is the protocol that is tuned; name another file")
    if out.stem in {path.stem for path in yaml_files("protocols")}:
        raise UserError(
            f"--out {out}: {out.stem!r} is a preset's name, and tables would mix the two; name another file"
        )
    if not out.resolve().parent.is_dir():
        raise UserError(f"--out {out}: no such folder")


def write_protocol(out: Path, suite: SuiteConfig, choices: Sequence[Choice], trials: int) -> None:
    """The tuned protocol, for ``--protocol``: the base, what was chosen for each method, and how."""
    base, entries = suite.protocols[0], {}
    for choice in choices:
        if choice.values is not None:
            entry: dict[str, Any] = {}
            for name, value in choice.values.items():
                put(entry, name, value) if _is_field(name) else entry.setdefault("options", {}).update({name: value})
            entries[choice.name] = entry
    if base.endswith((".yaml", ".yml")):
        base = os.path.relpath(Path(base).expanduser().resolve(), out.resolve().parent)
    told = {
        "title": f"{load_protocol(suite.protocols[0]).title}, tuned",
        "base": base,
        "per_method": entries,
        "tuning": {"trials": trials, "repeats": suite.seeds, "datasets": suite.datasets, "tasks": suite.tasks},
    }
    head = "# Written by `clmerge tune`. A method without an entry was not tuned; {}: its defaults were the best.\n"
    write_atomic(out, head + yaml.safe_dump(told, sort_keys=False, allow_unicode=True))
