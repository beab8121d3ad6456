"""How many trials run at once, here or on a cluster."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

from bench.common.errors import UserError

if TYPE_CHECKING:
    from bench.execute.execute import Execution


def slots(execution: Execution, threads: int) -> int:
    """How many trials run at once on this machine, or on the Ray cluster to join.

    On CPUs one process for every ``threads`` cores, since two processes of one thread do more than one of two
    (``benchmarks/processes.py``). On GPUs as many as ``gpus_per_run`` allows.

    Args:
        execution: see there.
        threads: of one process (a field of the protocol).

    Raises:
        UserError: GPUs are asked for where there are none.
    """
    share, workers = execution.gpus_per_run, execution.workers
    cpus, gpus = _cluster() if cluster_address() else (_cores(), count_gpus())
    if share and not gpus:
        raise UserError(f"--gpus-per-run: {share:g} was asked for, and no GPU is here; leave it out or use 0")
    share = min(1, gpus) if share is None else share
    if share:
        room = int(1 / share + 1e-9) * gpus
        return min(workers or room, room)
    return workers or max(1, cpus // threads)


def _cores() -> int:
    """Cores that this process may use: a container's or a job's share, not the machine's."""
    from joblib import cpu_count  # type: ignore[import-untyped]

    return int(cpu_count())


def count_gpus() -> int:
    """GPUs that this process may use; torch is asked only where there is a driver."""
    if not any(os.path.exists(device) for device in ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")):
        return 0
    import torch

    return torch.cuda.device_count()


def _cluster() -> tuple[int, int]:
    """Cores and GPUs of the cluster to join, asked by a process of its own: Ray takes over the one that imports it."""
    question = (
        "import ray; ray.init(log_to_driver=False); r = ray.cluster_resources(); print(r['CPU'], r.get('GPU', 0))"
    )
    command = [sys.executable, "-c", question]
    try:  # Ray itself would wait for ever for a cluster that is not there
        asked = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    except (subprocess.TimeoutExpired, subprocess.CalledProcessError) as error:
        why = (error.stderr.strip().splitlines() or [str(error)])[-1] if isinstance(error.stderr, str) else "no answer"
        raise UserError(
            f"RAY_ADDRESS={cluster_address()}: {why}; start a cluster (ray start --head) or unset it"
        ) from None
    cpus, gpus = asked.stdout.split()[-2:]
    return int(float(cpus)), int(float(gpus))


def cluster_address() -> str | None:
    """The cluster to join, None to start one of our own."""
    address = os.environ.get("RAY_ADDRESS", "")
    return None if address in ("", "local") else address
