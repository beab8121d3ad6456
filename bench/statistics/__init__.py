"""What rules ask of a task's data at a point in weight space: one file a statistic, one line here. Torch-free.

A rule asks for one with ``task.statistic("fisher", kind="exact")``; ``clmerge merge`` takes files of it under its key.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

from bench.common.errors import unknown

if TYPE_CHECKING:
    from bench.statistics.base import Statistic

#: by key: the module whose ``STATISTIC`` it is, and what it is in a line of help
STATISTICS = {
    "fisher": ("fisher", "diagonal Fisher at theta*_t"),
    "gram": ("gram", "X^T X of layer inputs"),
}


@cache
def statistic(key: str) -> Statistic[Any]:
    """The statistic of that key.

    Raises:
        UserError: there is none.
    """
    if key not in STATISTICS:
        raise unknown("statistic", key, STATISTICS, "task.statistic")
    found: Statistic[Any] = import_module(f"bench.statistics.{STATISTICS[key][0]}").STATISTIC
    return found


def code_files(key: str) -> tuple[str, ...]:
    """The files (relative to ``bench/``) that its values come from."""
    return ("statistics/base.py", f"statistics/{STATISTICS[key][0]}.py")
