"""clmerge: a benchmark harness for continual learning by weight merging."""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "Session":  # what it imports is not needed for ``clmerge --help``
        from bench.session import Session

        return Session
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
