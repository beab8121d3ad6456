"""Whether N cores do more as N processes of one thread or as one process of N threads: the same cells both ways.

Prints the seconds of both and their ratio (above 1: several processes are faster). The clock runs from the moment
when every process has imported all and run one cell, so it measures the work alone. Nothing is cached or kept.

Run with: python benchmarks/processes.py [--cores N] [--dataset KEY] [--repeats R]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from bench.common.paths import ROOT
from bench.config.schema import SuiteConfig
from bench.plan.grid import expand
from bench.registry import Registry

METHODS = ["finetune", "pm"]
DATA = ROOT / "data"


def work(dataset: str, threads: int, seeds: str) -> None:
    """One process: run the cells of these repeats, after a line on standard input."""
    from bench.common.cache import Store
    from bench.run.cell import run_cell
    from bench.run.workbench import Workbench

    suite = SuiteConfig(key="processes", protocol="embedded", datasets=[dataset], methods=METHODS, seeds=f"99,{seeds}")
    cells, _ = expand(suite, Registry.load(), DATA, [], {"threads": threads, "train.epochs": 1, "per_dataset": {}})
    with tempfile.TemporaryDirectory() as folder:
        workbench = Workbench(Path(folder), DATA, Store(Path(folder) / "cache", enabled=False))
        warm = [cell for cell in cells if cell.run_seed == 99]
        run_cell(warm[0], workbench)
        print("ready", flush=True)
        input()
        for cell in cells:
            if cell not in warm:
                record = run_cell(cell, workbench)
                assert record["status"] == "done", record["error"]


def seconds(dataset: str, processes: int, threads: int, cores: int) -> float:
    """Wall-clock seconds of ``cores`` repeats, dealt out over the processes."""
    running = []
    for process in range(processes):
        seeds = ",".join(str(seed) for seed in range(cores) if seed % processes == process)
        command = [sys.executable, __file__, "--work", str(threads), seeds, "--dataset", dataset]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        running.append(
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        )
    for child in running:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
    began = time.perf_counter()
    for child in running:
        assert child.stdin is not None
        child.stdin.write("\n")
        child.stdin.flush()
    if any(code != 0 for code in [child.wait() for child in running]):
        raise SystemExit("a process failed")
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--work", nargs=2, metavar=("THREADS", "SEEDS"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.work:
        return work(asked.dataset, int(asked.work[0]), asked.work[1])
    many, one = [], []
    for _ in range(asked.repeats):  # in turns, so that a machine's moods meet both
        many.append(seconds(asked.dataset, asked.cores, 1, asked.cores))
        one.append(seconds(asked.dataset, 1, asked.cores, asked.cores))
    print(f"{asked.cores} processes of 1 thread: {median(many):6.2f} s   ({', '.join(f'{s:.2f}' for s in many)})")
    print(f"1 process of {asked.cores} threads: {median(one):6.2f} s   ({', '.join(f'{s:.2f}' for s in one)})")
    print(f"ratio {median(one) / median(many):.2f}")


if __name__ == "__main__":
    main()
