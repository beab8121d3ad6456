"""Nested mappings by dotted keys: ``train.lr`` is the key ``lr`` of the mapping ``train``."""

from __future__ import annotations

import types
from collections.abc import Collection, Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any, Union, get_args, get_origin

import pydantic

from bench.common.errors import UserError, unknown


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of ``base`` with ``changes`` laid over it: mappings key by key, everything else as a whole."""
    out = deepcopy(dict(base))
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(out.get(key), Mapping)
        out[key] = merged(out[key], value) if both else deepcopy(value)
    return out


def put(data: dict[str, Any], dotted: str, value: Any) -> None:
    """Set a key in place; mappings on the way to it are made where there are none."""
    *path, last = dotted.split(".")
    for part in path:
        if not isinstance(data.get(part), dict):
            data[part] = {}
        data = data[part]
    data[last] = deepcopy(value)


def value_at(data: Mapping[str, Any], dotted: str) -> Any:
    """The value of a key; None where a mapping on the way to it has it not."""
    for part in dotted.split("."):
        data = data.get(part) if isinstance(data, Mapping) else None  # type: ignore[assignment]
    return data


def drop(data: dict[str, Any], dotted: str) -> None:
    """Remove a key in place, and the mappings that its going leaves empty."""
    first, _, rest = dotted.partition(".")
    if rest and isinstance(data.get(first), dict):
        drop(data[first], rest)
    if not rest or data.get(first) == {}:
        data.pop(first, None)


def flat(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every dotted key with its value; an empty mapping is a value."""
    for key, value in data.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def stands_above(names: Collection[str], dotted: str) -> bool:
    """Whether one of the names is this key or a mapping that holds it."""
    return any(dotted == name or dotted.startswith(f"{name}.") for name in names)


def check_key(model: type[pydantic.BaseModel], dotted: str, where: str) -> None:
    """Whether a model has this key: a field, a field of a nested model, or anything below a mapping.

    Raises:
        UserError: it has none; the nearest ones are named.
    """
    found: type[pydantic.BaseModel] | None = model
    parts = dotted.split(".")
    for depth, part in enumerate(parts):
        if found is None:
            raise UserError(f"{where}: {dotted}: {'.'.join(parts[:depth])} has no keys below it")
        if part not in found.model_fields:
            raise unknown("key", dotted, keys_of(model), where)
        annotation = found.model_fields[part].annotation
        found = _model_in(annotation)
        if found is None and any(get_origin(kind) is dict for kind in _kinds(annotation)):
            return


def keys_of(model: type[pydantic.BaseModel], prefix: str = "") -> Iterator[str]:
    """Every dotted key of a model, those of nested models too."""
    for name, field in model.model_fields.items():
        inner = _model_in(field.annotation)
        yield f"{prefix}{name}"
        if inner is not None:
            yield from keys_of(inner, f"{prefix}{name}.")


def key_at(model: type[pydantic.BaseModel], location: Sequence[int | str]) -> str:
    """The dotted key of a validation error, without the names that pydantic gives to the members of a union."""
    found: type[pydantic.BaseModel] | None = model
    key, free = [], False
    for part in location:
        if found is not None and str(part) in found.model_fields:
            annotation = found.model_fields[str(part)].annotation
            items = [get_args(kind)[0] for kind in _kinds(annotation) if get_origin(kind) is list]
            found = next(filter(None, map(_model_in, [annotation, *items])), None)
            free = any(get_origin(kind) is dict for kind in _kinds(annotation))
        elif found is None and not free and isinstance(part, str):
            continue
        key.append(str(part))
    return ".".join(key)


def _kinds(annotation: Any) -> tuple[Any, ...]:
    """The members of a union, or the annotation itself."""
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def _model_in(annotation: Any) -> type[pydantic.BaseModel] | None:
    models = (k for k in _kinds(annotation) if isinstance(k, type) and issubclass(k, pydantic.BaseModel))
    return next(models, None)
