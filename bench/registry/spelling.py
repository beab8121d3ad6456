"""The grammar in which a method is spelled: ``[trainer+]rule[@start][/head][:field=value,...]``.

:func:`parse` and :func:`spell` are inverses. Neither knows which names there are: :mod:`bench.registry.resolve` does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType
from typing import get_args

from bench.common.errors import UserError, unknown
from bench.config.schema import HeadKind
from bench.method import START, Start

GRAMMAR = "[trainer+]rule[@start][/head][:field=value,...]"
HEADS: tuple[HeadKind, ...] = get_args(HeadKind)
_SPELLING = re.compile(
    r"(?:(?P<trainer>[\w-]+)\+)?(?P<name>[\w-]+)(?:@(?P<start>\w*))?(?:/(?P<head>\w*))?(?::(?P<options>.*))?"
)


@dataclass(frozen=True)
class Spelling:
    """A spelling taken apart, as it was written: None is what it leaves out."""

    name: str  #: of a rule, or (where no trainer is written) of a named method
    trainer: str | None = None
    start: Start | None = None
    head: HeadKind | None = None
    options: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))  #: value by field, both as text

    @property
    def parts(self) -> str:
        """The spelling without its options."""
        trainer = f"{self.trainer}+" if self.trainer is not None else ""
        start = f"@{self.start}" if self.start is not None else ""
        return trainer + self.name + start + (f"/{self.head}" if self.head is not None else "")


def spell(spelling: Spelling) -> str:
    """The text that :func:`parse` takes apart into this."""
    options = ",".join(f"{name}={value}" for name, value in spelling.options.items())
    return f"{spelling.parts}:{options}" if options else spelling.parts


def parse(text: str, where: str = "methods") -> Spelling:
    """A spelling taken apart.

    Args:
        text: of the grammar.
        where: what an error names as the place.

    Raises:
        UserError: it is not of the grammar, or names a start or a head that does not exist.
    """
    try:
        return _parsed(text)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


@lru_cache(maxsize=4096)
def _parsed(text: str) -> Spelling:
    """Every spelling is taken apart once in a process."""
    match = _SPELLING.fullmatch(text)
    if match is None:
        raise UserError(f"{text!r} is not {GRAMMAR}")
    start = next((known for known in START if known == match["start"]), None)
    head = next((known for known in HEADS if known == match["head"]), None)
    if match["start"] is not None and start is None:
        raise unknown("start", match["start"], START, repr(text))
    if match["head"] is not None and head is None:
        raise unknown("head", match["head"], HEADS, repr(text))
    options: dict[str, str] = {}
    for pair in filter(None, (match["options"] or "").split(",")):
        name, equals, value = pair.partition("=")
        if not equals:
            raise UserError(f"{text!r}: {pair!r} is not field=value")
        options[name.strip()] = value.strip()
    return Spelling(match["name"], match["trainer"], start, head, MappingProxyType(options))
