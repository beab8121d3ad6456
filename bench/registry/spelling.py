"""The grammar in which a method is spelled: ``[trainer+]rule[@start][/head][:field=value,...]``."""

from __future__ import annotations

import re
from typing import NamedTuple, get_args

from bench.config.schema import HeadKind

SPELLING = re.compile(
    r"(?:(?P<trainer>[\w-]+)\+)?(?P<name>[\w-]+)(?:@(?P<start>\w*))?(?:/(?P<head>\w*))?(?::(?P<options>.*))?"
)
HEADS: tuple[HeadKind, ...] = get_args(HeadKind)


class Spelled(NamedTuple):
    """A spelling taken apart: the keys of its parts, the others as they are written (None: not at all)."""

    trainer: str
    rule: str
    start: str | None
    head: HeadKind | None
    options: dict[str, str]
