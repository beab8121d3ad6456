"""Synthetic records, written as a run writes them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from bench.records.record import counts_sha256

TASK_TEST_IMAGES = 400
CONTRACT = (
    "dataset,n_tasks,protocol,method,variant,start,class_order_seed,run_seed,status,a_last,avg_acc,forgetting,"
    "a_last_taskmean,avg_acc_taskmean,forgetting_taskmean,a_last_taskaware,learn_acc,merge_drop,train_s_alone,"
    "train_s_spent,merge_s,eval_s,wall_s,opt_steps,peak_mb,carried_bytes,digest,scenario"
)

# key: (status, adapts the backbone, training data, start, A_last, forgets)
METHODS: dict[str, tuple[str, bool, str, str, float, float]] = {
    "joint": ("oracle", True, "seen", "pretrained", 73, 0),
    "linear_probe": ("baseline", False, "current", "pretrained", 47, 15),
    "finetune": ("baseline", True, "current", "previous", 43, 44),
    "ewc": ("published", True, "current", "previous", 52, 15),
    "average@merged": ("variant", True, "current", "merged", 51.5, 18),
    "average": ("published", True, "current", "pretrained", 46, 17),
    "task_arithmetic": ("published", True, "current", "pretrained", 44.5, 13),
    "pm": ("published", True, "current", "merged", 50, 16),
    "lora_m": ("variant", True, "current", "merged", 51, 17),
    "trm": ("reconstruction", True, "current", "merged", 51, 16),
}


def flat(a_last: int, n_tasks: int = 2) -> list[list[list[int]]]:
    """Counts whose every accuracy is ``a_last`` tenths of a percent."""
    return [[[a_last, 1000]] * (t + 1) for t in range(n_tasks)]


def triangle(rng: np.random.Generator, n_tasks: int, last: float, forgets: float, n: int) -> list[list[list[int]]]:
    """Counts whose A_T is near ``last`` and whose earlier accuracies are up to ``forgets`` higher."""
    rows = []
    for t in range(n_tasks):
        level = last + (95 - last) * (1 - t / max(1, n_tasks - 1)) ** 1.5
        rows.append(
            [
                [int(rng.binomial(n, np.clip(level + forgets * (i - t / 2) / n_tasks, 1, 99) / 100)), n]
                for i in range(t + 1)
            ]
        )
    return rows


def record(
    method: str = "pm",
    seed: int = 0,
    *,
    dataset: str = "glyphs",
    n_tasks: int = 5,
    protocol: str = "embedded",
    eval_split: str = "test",
    status: str = "done",
    counts: Any = None,
    a_last: float | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """One whole record; ``a_last`` sets its level, ``counts`` replaces them, ``changes`` replace top-level entries."""
    method_status, adapt, data, start, level, forgets = METHODS.get(
        method, ("published", True, "current", "merged", 50.0, 15.0)
    )
    level = level if a_last is None else a_last
    # The seed's own luck is shared by all methods, as in a run.
    luck = np.random.default_rng(seed).normal(0, 1)
    rng = np.random.default_rng([seed, n_tasks, *method.encode()])
    if counts is None:
        counts = triangle(rng, n_tasks, level + luck, forgets, TASK_TEST_IMAGES)
        if data == "seen":
            counts = [*[None] * (n_tasks - 1), counts[-1]]
    reached = [row for row in counts if row is not None]
    aware = [row and [[min(n, c + (n - c) * 3 // 5), n] for c, n in row] for row in counts]
    before = [
        None if row is None else [min(n, c + n // 50), n] for row in counts for c, n in [row[-1] if row else (0, 1)]
    ]
    key = method.partition("@")[0] if "@" not in method else f"plain+{method}"
    rule = method.partition("@")[0]
    identity = f"{dataset}-T{n_tasks}-{protocol}-{eval_split}-{method}-c{seed}-r{seed}"
    value: dict[str, Any] = {
        "format": 1,
        "id": identity,
        "status": status,
        "coordinates": {
            "dataset": dataset,
            "n_tasks": n_tasks,
            "protocol": protocol,
            "method": key,
            "variant": f"plain+{rule}@{start}",
            "start": start,
            "class_order_seed": seed,
            "run_seed": seed,
            "eval_split": eval_split,
        },
        "method": {
            "key": key,
            "title": f"The {rule} rule",
            "status": method_status,
            "trainer": {"key": "plain", "adapt": adapt},
            "start": start,
            "data": {"training": data},
        },
        "counts": counts,
        "counts_taskaware": aware,
        "before_merge": before,
        "tasks": [],
        "totals": {
            "train_s_alone": 10.0 + seed,
            "train_s_spent": 2.0,
            "merge_s": 0.5,
            "eval_s": 0.25,
            "wall_s": 3.0,
            "opt_steps": 75 * len(reached),
            "peak_mb": 410.5,
            "carried_bytes": 1_200_000,
        },
        "digest": f"{seed:032x}",
        "error": None,
    }
    if status == "failed":
        value |= {"counts": [], "counts_taskaware": [], "before_merge": [], "error": {"type": "RuntimeError"}}
    value |= changes
    value.setdefault("counts_sha256", counts_sha256(value))
    return value


def write(results: Path, records: Iterable[dict[str, Any]]) -> Path:
    """Write records below ``results/runs`` and return ``results``."""
    for value in records:
        folder = results / "runs" / value["id"]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "cell.json").write_text(json.dumps(value))
    return results


def grid(
    seeds: int = 6, datasets: Iterable[str] = ("glyphs",), methods: Iterable[str] = tuple(METHODS)
) -> list[dict[str, Any]]:
    """All methods on all datasets with ``seeds`` repeats."""
    return [record(m, s, dataset=d) for d in datasets for m in methods for s in range(seeds)]
