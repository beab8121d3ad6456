"""Ray Tune: on the cores and GPUs of this machine, or on a cluster that is there (``RAY_ADDRESS``)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.common.errors import UserError
from bench.execute import resources
from bench.execute.executors.executor import Executor
from bench.execute.ray_process import RayProcess, clean_up_after_killed


class Ray(Executor):
    """Ray takes over the process that imports it, so a process of its own talks to it (see ray_process.py)."""

    def slots(self) -> int:
        """One process for so many cores, or as many as share the GPUs."""
        return resources.slots(self.execution, self.threads)

    def run(self, specs: list[dict[str, Any]], log: Path) -> dict[int, str]:
        """What a worker could not run is said by trial."""
        job = log.parent
        clean_up_after_killed(job.parent)
        joined = resources.cluster_address() is not None
        settings = {
            "own": None if joined else {"cpus": self.slots(), "gpus": resources.count_gpus()},
            "workers": self.execution.workers,
            "gpus_per_run": self.execution.gpus_per_run,
            "threads": self.threads,
        }
        with RayProcess(job, settings, specs) as process:
            process.wait()
        if not process.finished():
            lines = process.log.read_text(errors="replace").strip().splitlines() or ["no message"]
            raise UserError(
                f"Ray stopped before all was run: {lines[-1]} (log: {process.log}); what is finished is kept, "
                "start again or use --executor local"
            )
        return process.errors()
