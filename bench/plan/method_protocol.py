"""What a protocol says of one method: its own fields and options, and the head that it brings. Torch-free."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from bench.config.dotted import merged, stands_above
from bench.config.files import protocol_of
from bench.config.schema import ProtocolConfig
from bench.method import Start
from bench.registry import Registry
from bench.registry.resolved import Method
from bench.registry.spelling import parse, spell

Tuned = dict[str, dict[str, Any]]


def check_names(registry: Registry, protocol: ProtocolConfig) -> None:
    """Whether every entry of ``per_method`` is a method's.

    Raises:
        UserError: it is no named method and no spelling; the nearest names are told.
    """
    for name in protocol.per_method:
        if name not in registry.methods:
            registry.resolve(name, protocol.tuned, where=f"protocol {protocol.key}: per_method")


class MethodProtocol(NamedTuple):
    """A method and the protocol as it is for this method."""

    method: Method
    protocol: ProtocolConfig
    entry: str | None  #: of ``per_method``, where it has one


def for_method(
    registry: Registry,
    protocol: ProtocolConfig,
    overrides: Mapping[str, Any],
    spelling: str,
    start: Start | None = None,
    trainer: str | None = None,
    entry: str | None = None,
) -> MethodProtocol:
    """The method that is spelled, and the protocol with what ``per_method`` has for it.

    An entry is found by the method's key, or by the named method that is spelled with other options (``ewc:lam=3``).
    Its options stand above ``tuned`` and below what is spelled out or set by hand; a head that the method brings stands
    above the protocol's. The protocol that is returned keeps this entry alone.

    Raises:
        UserError: an option that the method does not have, or as :meth:`bench.registry.Registry.resolve`.
    """
    tuned = protocol.tuned
    method = registry.resolve(spelling, tuned, start, trainer=trainer)
    if entry is None and protocol.per_method:
        names = _names_of(method, registry, spelling, tuned, start, trainer)
        entry = next((name for name in names if name in protocol.per_method), None)
    if entry is None and method.head is None and not protocol.per_method:
        return MethodProtocol(method, protocol, None)
    changes = dict(protocol.per_method[entry]) if entry else {}
    where = f"protocol {protocol.key}: per_method.{entry}"
    options = {
        name: value for name, value in changes.pop("options", {}).items() if not _by_hand(overrides, method, name)
    }
    if options:
        method = registry.resolve(spelling, tuned, start, where, trainer, options)
    head = {"head": {"kind": method.head, **method.head_options}} if method.head else {}
    data = merged(merged(protocol.model_dump(), changes), head)
    data["per_method"] = {entry: protocol.per_method[entry]} if entry else {}
    return MethodProtocol(method, protocol_of(data, where), entry)


def _by_hand(overrides: Mapping[str, Any], method: Method, option: str) -> bool:
    side, _, bare = option.rpartition(".")
    plugins = {"trainer": method.trainer, "rule": method.rule}
    owners = (cls for name, cls in plugins.items() if side in ("", name) and bare in cls.options())
    return any(stands_above(overrides, f"tuned.{cls.key}.{bare}") for cls in owners)


def _names_of(
    method: Method, registry: Registry, spelling: str, tuned: Tuned, start: Start | None, trainer: str | None
) -> Iterator[str]:
    """Under which names a method's entry is looked up; a head does not change how it is trained."""
    yield method.key
    written = parse(spelling)
    of_head = {f"head.{name}" for name in method.head_options} | dict(method.printed_head()).keys()
    options = {name: value for name, value in written.options.items() if name not in of_head}
    headless = dataclasses.replace(written, head=None, options=options)
    yield registry.resolve(spell(headless), tuned, start, trainer=trainer).key
    if headless.trainer is None and headless.name in registry.methods:
        named = registry.resolve(spell(dataclasses.replace(headless, start=None)), tuned)
        if (named.trainer, named.rule, named.start) == (method.trainer, method.rule, method.start):
            yield headless.name
