"""What runs trials."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.common.errors import UserError

if TYPE_CHECKING:
    from bench.execute.execute import Execution


class Executor(ABC):
    """Runs trials, several at once where there is room. A kind is one file beside this one, with one such class."""

    def __init__(self, execution: Execution, threads: int) -> None:
        share, workers = execution.gpus_per_run, execution.workers
        if workers is not None and workers < 1:
            raise UserError(f"--workers: {workers} processes can run nothing; use 1 or more")
        if share is not None and not 0 <= share <= 1:
            raise UserError(f"--gpus-per-run: {share:g} is not between 0 and 1; a run uses one GPU or a share of it")
        self.execution, self.threads = execution, threads

    @abstractmethod
    def slots(self) -> int:
        """How many trials run at once: what the planner packs for.

        Raises:
            UserError: what is asked for is not here.
        """

    @abstractmethod
    def run(self, specs: list[dict[str, Any]], log: Path) -> dict[int, str]:
        """Run trials (see :func:`bench.execute.trial.run_trial`) to their end.

        Args:
            specs: one a trial, JSON-able.
            log: a file that may be written, in a folder of this command alone.

        Returns:
            By the trial's number, one line on what went wrong outside of any cell.

        Raises:
            UserError: nothing can be run this way.
            KeyboardInterrupt: by Ctrl-C and its like, when nothing of it runs any more.
        """
