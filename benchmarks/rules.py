"""What all closed-form rules on one training cost against one: `python benchmarks/rules.py [--repeats 3]`.

Both sides run in this process, in turn, each into an empty results folder, so trainings and statistics are shared
inside a side only. Wall time has two parts beyond the training: merging with its statistics, and evaluating what each
rule serves, which no rule can share with another.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from bench.common.cache import Store
from bench.config.schema import SuiteConfig
from bench.plan.grid import expand
from bench.registry import Registry
from bench.run.cell import run_cell
from bench.run.workbench import Workbench

ONE = ["average"]
CLOSED = [*ONE, "task_arithmetic", "ties", "dare", "dare_ties", "magmax@pretrained", "fisher", "regmean"]
CLOSED += ["coma@pretrained", "cofima@pretrained", "became_noproj@pretrained", "opcm", "lot", "pm_alpha@pretrained"]
ITERATED = ["lore_svt", "doge"]  # no data either, but hundreds of steps


def seconds(methods: list[str], dataset: str, data: Path) -> tuple[float, float]:
    """(wall seconds of all cells of the methods, of these in evaluation); imports and data loading not counted."""
    suite = SuiteConfig(key="rules", protocol="embedded", datasets=[dataset], tasks=[5], methods=methods, seeds="1")
    cells, _ = expand(suite, Registry.load(), data, [])
    with tempfile.TemporaryDirectory() as folder:
        workbench = Workbench(Path(folder), data, Store(Path(folder) / "cache"))
        workbench.stream(cells[0])
        began, evaluating = time.perf_counter(), 0.0
        for cell in cells:
            record = run_cell(cell, workbench)
            assert record["status"] == "done", record["error"]
            evaluating += record["totals"]["eval_s"]
        return time.perf_counter() - began, evaluating


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dataset", default="glyphs_xor")
    parser.add_argument("--data", type=Path, default=Path("data"))
    options = parser.parse_args()
    seconds(ONE, "digits", options.data)  # warm-up
    sides = {"one": ONE, f"{len(CLOSED)} closed forms": CLOSED, "with lore and doge": CLOSED + ITERATED}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for _ in range(options.repeats):
        for name, methods in sides.items():
            times[name].append(seconds(methods, options.dataset, options.data))
    for name, measured in times.items():
        walls, evals = zip(*measured, strict=True)
        told = f"(min {min(walls):.2f}, max {max(walls):.2f}), of it evaluation {statistics.median(evals):.2f} s"
        print(f"{name:20s} {statistics.median(walls):6.2f} s  {told}")
    for name in list(sides)[1:]:
        pairs = list(zip(times["one"], times[name], strict=True))
        whole = statistics.median(b[0] / a[0] for a, b in pairs)
        without = statistics.median((b[0] - b[1]) / (a[0] - a[1]) for a, b in pairs)
        print(f"{name} / one: {whole:.2f}; training, statistics and merging alone: {without:.2f}")


if __name__ == "__main__":
    main()
