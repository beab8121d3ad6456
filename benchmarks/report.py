"""What a report of many cells costs: `python benchmarks/report.py [--cells N] [--repeats N] [--folder F] [--profile]`.

Records of the size that runs leave (T = 5, 10 and 20 on four datasets, as many methods as it takes) are made from drawn
counts, then `clmerge report` runs in a process of its own. Seconds are wall-clock and those of the CPU, memory is the
largest resident size. Nothing is trained, and no number means anything.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bench.config.schema import SuiteConfig
from bench.plan.cell import Cell
from bench.plan.grid import expand
from bench.records.record import FORMAT, counts_sha256
from bench.registry import Registry

DATASETS, TASKS = ["glyphs", "glyphs_rot90", "glyphs_xor", "digits"], [5, 10, 20]
TEST_IMAGES = 400  # of one task
MACHINE = {"torch": "0", "python": "0", "cpu": "drawn numbers", "cores": 0, "gpu": None, "commit": "0" * 12}


def streams_of(cells: int, repeats: int) -> Iterator[Cell]:
    """One cell a stream and method; digits has ten classes, so no twenty tasks."""
    registry = Registry.load()
    streams = [(d, t) for d in DATASETS for t in TASKS if (d, t) != ("digits", 20)]
    names = list(registry.methods)[: max(1, round(cells / repeats / len(streams)))]
    for dataset, n_tasks in streams:
        suite = SuiteConfig(
            key="drawn", datasets=[dataset], tasks=[n_tasks], methods=names, seeds="1", protocol="embedded"
        )
        yield from expand(suite, registry, Path("data"), [])[0]


def record_of(cell: Cell, told: dict[str, Any], level: float, seed: int) -> dict[str, Any]:
    """A record of one repeat whose accuracies fall from 95 to about ``level`` percent."""
    rng = np.random.default_rng([seed, cell.n_tasks])
    falls = np.linspace(95, level + rng.normal(), cell.n_tasks) / 100
    counts = [[[int(c), TEST_IMAGES] for c in rng.binomial(TEST_IMAGES, p, t + 1)] for t, p in enumerate(falls)]
    aware = [[[(c + n) // 2, n] for c, n in row] for row in counts]
    request = {**cell.request, "class_order_seed": seed, "run_seed": seed}
    tasks = [
        {
            "t": t + 1,
            "classes": [2 * t, 2 * t + 1],
            "onset": {"loss": dict(zip(("0", "10", "50"), rng.random(3), strict=True)), "grad_norm": {}},
            "scalars": {"alpha": 1 / (t + 1)},
            "seconds": dict.fromkeys(("train_alone", "train_spent", "statistics", "merge", "head", "eval"), 0.25),
            "opt_steps": 75,
            "trained_digest": f"{rng.integers(2**62):032x}",
            "served_digest": f"{rng.integers(2**62):032x}",
        }
        for t in range(cell.n_tasks)
    ]
    value = told | {
        "format": FORMAT,
        "id": cell.id.replace("-c0-r0-", f"-c{seed}-r{seed}-"),
        "status": "done",
        "coordinates": cell.coordinates() | {"class_order_seed": seed, "run_seed": seed},
        "request": request,
        "environment": MACHINE,
        "written": "2026-01-01T00:00:00Z",
        "dataset": {"key": cell.dataset.key, "digest": "0" * 32, "class_order": list(range(cell.dataset.classes))},
        "counts": counts,
        "counts_taskaware": aware,
        "before_merge": [row[-1] for row in aware],
        "before_merge_taskaware": [row[-1] for row in aware],
        "tasks": tasks,
        "totals": {
            "train_s_alone": 10.0 + seed,
            "merge_s": 0.5,
            "eval_s": 1.0,
            "opt_steps": 75,
            "carried_bytes": 10**6,
        },
        "digest": tasks[-1]["served_digest"],
        "error": None,
    }
    return value | {"counts_sha256": counts_sha256(value)}


def write(folder: Path, cells: int, repeats: int) -> int:
    """Write about that many records below ``folder/runs``; returns how many."""
    written = 0
    for i, cell in enumerate(streams_of(cells, repeats)):
        told = {"method": cell.method.describe(), "protocol": cell.protocol_told(), "code": cell.code()}
        for seed in range(repeats):
            value = record_of(cell, told, 40 + i % 30, seed)
            place = folder / "runs" / value["id"]
            place.mkdir(parents=True, exist_ok=True)
            (place / "cell.json").write_text(json.dumps(value))
            written += 1
    return written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=10_000, help="about how many")
    parser.add_argument("--repeats", type=int, default=20, help="of every method: many repeats are few methods")
    parser.add_argument("--folder", type=Path, help="keep the records here, and use those that are there")
    parser.add_argument("--profile", action="store_true", help="print where the time goes")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = asked.folder or Path(temporary)
        made = len(list((folder / "runs").glob("*"))) or write(folder, asked.cells, asked.repeats)
        size = sum(file.stat().st_size for file in (folder / "runs").glob("*/cell.json"))
        profiler = ["-m", "cProfile", "-s", "cumtime"] if asked.profile else []
        command = [*profiler, "-m", "bench", "report", "--results", str(folder), "--out", str(folder / "out")]
        began = time.perf_counter()
        subprocess.run([sys.executable, *command], check=True)
        seconds, used = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
        page = (folder / "out" / "index.html").stat().st_size
        print(
            f"{made} cells ({size / 1e6:.0f} MB): {seconds:.1f} s, {used.ru_utime + used.ru_stime:.1f} s of CPU, "
            f"{used.ru_maxrss / 1024:.0f} MB, page {page / 1e6:.1f} MB"
        )


if __name__ == "__main__":
    main()
