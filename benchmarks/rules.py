"""What six closed-form rules on one training cost against one: `python benchmarks/rules.py [--repeats 3]`.

Both sides run in this process, in turn, each into an empty results folder, so trainings are shared inside a side only.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from bench.cell import Workbench, run_cell
from bench.config import SuiteConfig
from bench.grid import expand
from bench.registry import Registry
from bench.store import Store

ONE = ["average@pretrained"]
SIX = [*ONE, "task_arithmetic", "task_arithmetic:lam=1,over_t=true", "pm_alpha@pretrained"]
SIX += ["pm_alpha@pretrained:per_module=true", "pm_alpha@pretrained:scale=trace"]
FISHER = ["pm_alpha@pretrained"]


def seconds(methods: list[str], dataset: str, data: Path) -> float:
    """Wall seconds of all cells of the methods, imports and data loading not counted."""
    suite = SuiteConfig(key="rules", protocol="embedded", datasets=[dataset], tasks=[5], methods=methods, seeds="1")
    cells, _ = expand(suite, Registry.load(), data, [])
    with tempfile.TemporaryDirectory() as folder:
        workbench = Workbench(Path(folder), data, Store(Path(folder) / "cache"))
        workbench.stream(cells[0])
        began = time.perf_counter()
        for cell in cells:
            record = run_cell(cell, workbench)
            assert record["status"] == "done", record["error"]
        return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dataset", default="glyphs_xor")
    parser.add_argument("--data", type=Path, default=Path("data"))
    options = parser.parse_args()
    seconds(ONE, "digits", options.data)  # warm-up
    sides: dict[str, list[float]] = {"one": [], "one with Fisher": [], "six": []}
    for _ in range(options.repeats):
        for name, methods in zip(sides, (ONE, FISHER, SIX), strict=True):
            sides[name].append(seconds(methods, options.dataset, options.data))
    for name, times in sides.items():
        print(f"{name:16s} {statistics.median(times):6.2f} s  (min {min(times):.2f}, max {max(times):.2f})")
    for name in ("one", "one with Fisher"):
        ratios = [b / a for a, b in zip(sides[name], sides["six"], strict=True)]
        print(f"six / {name}: {statistics.median(ratios):.3f}  (min {min(ratios):.3f}, max {max(ratios):.3f})")


if __name__ == "__main__":
    main()
