"""One trial after the other, in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.execute.executors.executor import Executor
from bench.execute.trial import run_trial


class Local(Executor):
    """For debuggers, job arrays and small grids."""

    def slots(self) -> int:
        """One."""
        return 1

    def run(self, specs: list[dict[str, Any]], log: Path) -> dict[int, str]:
        """What goes wrong outside of any cell is raised."""
        for spec in specs:
            run_trial(spec)
        return {}
