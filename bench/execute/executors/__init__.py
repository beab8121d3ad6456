"""Where trials are run: an executor a file, found by the file's name. Importing this folder imports none of them."""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING

from bench.common.errors import unknown

if TYPE_CHECKING:
    from bench.execute.execute import Execution
    from bench.execute.executors.executor import Executor


def kinds() -> list[str]:
    """The names that ``--executor`` takes."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "executor")


def executor_of(execution: Execution, threads: int) -> Executor:
    """The executor that is asked for; ``threads`` are those of one process.

    Raises:
        UserError: there is none of this name, what it needs is not installed, or it is asked for what cannot be.
    """
    if execution.executor not in kinds():
        raise unknown("executor", execution.executor, kinds(), "--executor")
    from bench.execute.executors.executor import Executor

    module = importlib.import_module(f"{__name__}.{execution.executor}")
    (kind,) = (each for each in vars(module).values() if isinstance(each, type) and each.__module__ == module.__name__)
    assert issubclass(kind, Executor)
    return kind(execution, threads)
