"""How a record stands to what the same words ask for today: done, stale or outdated, and why. Torch-free.

* ``stale``: the same cell, made by other code than today's. It is counted and marked; ``--rerun stale`` runs it again.
* ``outdated``: another cell by now. The protocol, the dataset or a file of weights has changed since, so the record's
  number answers a question that nobody asks any more. It is named and never counted beside today's.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bench.common.errors import UserError
from bench.config.dotted import flat
from bench.plan.cell import NO_IDENTITY, Cell
from bench.plan.grid import cell_of
from bench.records.record import COORDINATES, Record, Standing
from bench.registry import Registry

OF_REPEATS = ("n_tasks", "class_order_seed", "run_seed", "eval_split")  #: of a request: what changes no code
PLACE = (*COORDINATES, "eval_split")
WHERE_FILES_LIE = {"backbone.weights", "backbone.sha256", "head.text"}  #: what they hold is compared instead


DONE = Standing("done")


def standing(record: Record, cell: Cell, data: Path) -> Standing:
    """How a finished record stands to the cell that its request makes today.

    Args:
        record: with status "done".
        cell: see :func:`bench.plan.grid.cell_of`.
        data: the folder of datasets.
    """
    before: Mapping[str, str] | None = record.get("files")
    if before is None:
        return Standing("outdated", "an older version of clmerge wrote it, whose names stood for other things")
    absent = {name for name, digest in cell.files_digest.items() if not digest and before.get(name)}
    if absent:  # the rest can be compared all the same
        cell = dataclasses.replace(cell)
        vars(cell)["files_digest"] = cell.files_digest | {name: before[name] for name in absent}
    difference = _difference(record, cell)
    if difference or record["id"] != cell.id:
        other = "its dataset's description, or what names stand for, has changed since"
        return Standing("outdated", difference or other)
    changed = cell.changed_since(record, data)
    if changed:
        return Standing("outdated", changed)
    if absent:
        return Standing("stale", f"it cannot be checked: {_said(absent)} not on this machine")
    return DONE if record.get("code") == cell.code() else Standing("stale", "its code has changed since")


FILES_SAID = {
    "backbone": "the file of its backbone's weights",
    "text": "its file of text rows",
    "folder": "the folder that it replays",
}


def _said(names: Iterable[str]) -> str:
    """Files in words, with their verb."""
    words = [FILES_SAID.get(name, name) for name in sorted(names)]
    return " and ".join(words) + (" is" if len(words) == 1 else " are")


def standings(records: Iterable[Record], registry: Registry, folders: list[Path], data: Path) -> dict[str, Standing]:
    """Those of all finished records that are not simply done, by id.

    Of several that would stand at one place in a table (say of two protocol files of one name) only the one that was
    written last is counted; the others are outdated too.
    """
    found: dict[str, Standing] = {}
    newest: dict[tuple[Any, ...], tuple[str, str]] = {}
    cells: dict[str, Cell | Standing] = {}
    for record in records:
        if record["status"] != "done":
            continue
        if "imported" not in record:
            found[record["id"]] = _standing(record, cells, registry, folders, data)
        if found.get(record["id"], DONE).status == "outdated":
            continue
        place = tuple(record["coordinates"].get(name) for name in PLACE)
        written = str(record.get("written") or ""), record["id"]
        older = min(written, newest.get(place, written))
        newest[place] = max(written, newest.get(place, written))
        if older != newest[place]:
            why = f"{newest[place][1]} stands at the same place and was written later (two files of one name?)"
            found[older[1]] = Standing("outdated", why)
    return {cell_id: each for cell_id, each in found.items() if each != DONE}


def _standing(
    record: Record, cells: dict[str, Cell | Standing], registry: Registry, folders: list[Path], data: Path
) -> Standing:
    """Repeats and task counts of a method are the same configuration: it is looked up once for all of them."""
    request = record.get("request") or {}
    replayed = "replay" in request
    key = json.dumps(request if replayed else request | dict.fromkeys(OF_REPEATS), sort_keys=True)
    if key not in cells:
        try:
            cells[key] = cell_of(request, registry, folders, data)
        except UserError as error:
            cells[key] = Standing("stale", f"it cannot be checked against today's code: {error}")
        except KeyError:
            cells[key] = Standing("outdated", "an older version wrote it")
    cell = cells[key]
    if isinstance(cell, Standing):
        return cell
    if not replayed:
        asked = {name: request[name] for name in OF_REPEATS}
        cell = dataclasses.replace(cell, **asked)
    return standing(record, cell, data)


def _difference(record: Record, cell: Cell) -> str:
    """What of the configuration differs between a record and the cell of its request: "" where nothing does.

    Fields that only one of them has are left out: a version that has a field more means its default by it.
    """
    before: Mapping[str, str] = record["files"]
    for name in sorted(before.keys() | cell.files_digest.keys()):
        if before.get(name) != cell.files_digest.get(name):
            return f"{FILES_SAID.get(name, name)} has changed since"
    method, told = record.get("method") or {}, cell.method.describe()
    pairs = [("protocol", record.get("protocol") or {}, cell.protocol_told())]
    pairs += [("method", {part: method.get(part) or {}}, {part: told[part]}) for part in ("trainer", "rule")]
    unread = {f"head.{name}" for name in cell.protocol.head.unread}  # whose default may have changed since
    for what, then, now in pairs:
        old, new = (dict(flat({k: v for k, v in of.items() if k not in NO_IDENTITY})) for of in (then, now))
        changed = [k for k in old.keys() & new.keys() - WHERE_FILES_LIE - unread if old[k] != new[k]]
        if changed:
            name, more = min(changed), f" and {len(changed) - 1} more" if len(changed) > 1 else ""
            return f"its {what} has changed since: {name} was {old[name]}, is {new[name]}{more}"
    return ""
