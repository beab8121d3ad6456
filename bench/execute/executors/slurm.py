"""Jobs of a SLURM cluster, one a trial, by submitit (an extra: ``pip install 'clmerge[slurm]'``).

``CLMERGE_SLURM="slurm_partition=gpu timeout_min=600"`` gives more of submitit's parameters; ``cluster=local`` runs the
same jobs as processes of this machine.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from bench.common.errors import UserError
from bench.execute.executors.executor import Executor
from bench.execute.trial import run_trial

JOBS = 8  #: at once, where ``--workers`` does not say


class Slurm(Executor):
    """An array of jobs on a results folder that all nodes see."""

    def slots(self) -> int:
        """``--workers``: the size of the array."""
        return self.execution.workers or JOBS

    def run(self, specs: list[dict[str, Any]], log: Path) -> dict[int, str]:
        """Submit all, wait for all; an interruption cancels them."""
        try:
            import submitit
        except ImportError:
            raise UserError("--executor slurm: submitit is not installed; pip install 'clmerge[slurm]'") from None
        parameters = _parameters()
        try:
            executor = submitit.AutoExecutor(folder=log.parent, cluster=parameters.pop("cluster", "slurm"))
            gpus = 0 if self.execution.gpus_per_run == 0 else 1 if self.execution.gpus_per_run else None
            asked = {"cpus_per_task": self.threads, "slurm_array_parallelism": self.slots()}
            executor.update_parameters(**asked | ({} if gpus is None else {"gpus_per_node": gpus}) | parameters)
            jobs = executor.map_array(run_trial, specs)
        except (RuntimeError, ValueError, NameError, FileNotFoundError) as error:
            raise UserError(f"--executor slurm: {str(error).splitlines()[0]}; see CLMERGE_SLURM in the docs") from None
        try:
            errors = {number: job.exception() for number, job in enumerate(jobs)}
        except KeyboardInterrupt:
            for job in jobs:
                job.cancel()
            for job in jobs:  # its cells are free for the next command when it has ended, not when it is asked to
                job.wait()
            raise
        return {number: _last_line(error) for number, error in errors.items() if error is not None}


def _last_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]


def _parameters() -> dict[str, Any]:
    """What ``CLMERGE_SLURM`` says, numbers as numbers."""
    words = os.environ.get("CLMERGE_SLURM", "").split()
    if any("=" not in word for word in words):
        raise UserError(f"CLMERGE_SLURM: {' '.join(words)!r}: write name=value, with spaces between")
    return {name: yaml.safe_load(value) for name, _, value in (word.partition("=") for word in words)}
