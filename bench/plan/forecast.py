"""What running a plan takes, whether it can be written, and the lines that a person reads before."""

from __future__ import annotations

import shutil
from pathlib import Path

from bench.common.errors import UserError
from bench.common.files import write_atomic
from bench.config.files import weights_file
from bench.config.schema import SuiteConfig
from bench.data.dataset import prepared_folder, stored
from bench.plan.todo import Plan
from bench.records.record import read_records


def estimate(plan: Plan, results: Path) -> tuple[float | None, float]:
    """(core seconds, bytes) that running the plan takes: seconds from records of the same protocol where there are
    any (None otherwise), bytes as an upper bound.
    """
    spent: dict[str, float] = {}
    per_step: dict[str, list[float]] = {}  # by protocol, whatever was set by hand
    for record in read_records(results):
        if record["status"] == "done" and (record.get("totals") or {}).get("opt_steps"):
            told = record["coordinates"]
            cost = record["totals"]["train_s_alone"] + record["totals"]["merge_s"] + record["totals"]["eval_s"]
            spent[f"{told['dataset']} {told['n_tasks']} {told['protocol']} {told['variant']}"] = cost
            per_step.setdefault(told["protocol"].partition("[")[0], []).append(cost / record["totals"]["opt_steps"])
    seconds = 0.0
    for cell in plan.to_run:
        known = spent.get(f"{cell.dataset.key} {cell.n_tasks} {cell.protocol.key} {cell.method.variant}")
        measured = sorted(per_step.get(cell.protocol.variant_of or cell.protocol.key, []))
        typical = measured[len(measured) // 2] if measured else cell.protocol.seconds_per_step
        if known is None and typical is None:
            return None, 0.0
        seconds += known if known is not None else float(typical or 0) * cell.opt_steps()
    share = plan.trainings / plan.trainings_alone if plan.trainings_alone else 1.0
    weights = {weights_file(c.protocol) for c in plan.to_run if c.protocol.backbone.weights}
    model = max((f.stat().st_size for f in weights), default=50_000_000)
    predictions = max((c.dataset.test * c.n_tasks * 4 for c in plan.to_run), default=0)
    return seconds * share, float(plan.trainings * model + len(plan.to_run) * (predictions + 50_000))


def to_prepare(plan: Plan, data: Path) -> dict[str, int]:
    """Bytes of pixels, by prepared folder, that preparing what is not prepared yet will write."""
    sizes: dict[str, int] = {}
    for cell in plan.to_run:
        folder = prepared_folder(cell.dataset, data, cell.protocol.image)
        if not folder.exists():
            side, channels = stored(cell.dataset, cell.protocol.image).side, cell.dataset.image.channels
            sizes[folder.name] = (cell.dataset.train + cell.dataset.test) * channels * side**2
    return sizes


def preflight(plan: Plan, results: Path, data: Path) -> None:
    """Refuse to start what could not be written.

    Raises:
        UserError: the results folder is not writable, or too little space is left on its disk or on that of the data.
    """
    try:
        (results / "runs").mkdir(parents=True, exist_ok=True)
        write_atomic(results / "runs" / ".writable", "")
        (results / "runs" / ".writable").unlink()
    except OSError as error:
        raise UserError(f"--results {results}: cannot write there ({error.strerror}); name another folder") from None
    _, size = estimate(plan, results)
    pixels = to_prepare(plan, data)
    place = next(folder for folder in (data, *data.parents) if folder.exists())
    if place.stat().st_dev == results.stat().st_dev:
        size += sum(pixels.values())
    elif pixels and sum(pixels.values()) + 2**26 > shutil.disk_usage(place).free:
        raise UserError(
            f"--data {data}: {shutil.disk_usage(place).free / 1e9:.2f} GB free, {sum(pixels.values()) / 1e9:.2f} GB "
            f"needed to prepare {', '.join(pixels)}; free some space or name another folder"
        )
    free = shutil.disk_usage(results).free
    if size + 2**26 > free:
        raise UserError(
            f"--results {results}: {free / 1e9:.2f} GB free, up to {(size + 2**26) / 1e9:.2f} GB needed; "
            "free some space (clmerge cache prune) or name another folder"
        )


def describe(plan: Plan, suite: SuiteConfig, results: Path, processes: int | None) -> str:
    """The plan in a few lines."""
    cells = plan.cells
    datasets = ", ".join(dict.fromkeys(f"{c.dataset.key} T={c.n_tasks}" for c in cells))
    methods = len({c.method.key for c in cells})
    repeats = len({(c.class_order_seed, c.run_seed) for c in cells})
    protocols = list(dict.fromkeys(c.protocol.key for c in cells))
    more = f", ... ({len(protocols)} in all)" if len(protocols) > 4 else ""
    lines = [
        f"{len(cells)} cell{'s' * (len(cells) > 1)}: {datasets}; {methods} method{'s' * (methods > 1)}, "
        f"{repeats} repeat{'s' * (repeats > 1)}, "
        f"protocol{'s' * (len(protocols) > 1)} {', '.join(protocols[:4])}{more}"
        + {"val": ", validation split", "test_heldout": ", test_heldout split"}.get(suite.eval_split, "")
    ]
    told = {"done": plan.done, "failed before": plan.failed, "begun": plan.partial}
    states = [f"{len(ids)} {name}" for name, ids in told.items() if ids]
    lines.append(f"  {', '.join([*states, f'{len(plan.to_run)} to run'])}")
    if plan.outdated:
        lines.append(f"  {len(plan.outdated)} outdated, not counted:")
        lines += [f"    {cell_id}: {why}" for cell_id, why in list(plan.outdated.items())[:5]]
        lines += ["    ..."] * (len(plan.outdated) > 5)
    if plan.stale:
        again = (
            "run again"
            if {c.id for c in plan.to_run} & set(plan.stale)
            else "kept as they are; --rerun stale runs them again"
        )
        lines.append(f"  {len(plan.stale)} stale (their code has changed since): {again}")
        lines += [f"    {cell_id}" for cell_id in plan.stale[:5]] + ["    ..."] * (len(plan.stale) > 5)
    if plan.to_run:
        seconds, size = estimate(plan, results)
        if plan.trainings:
            work = f"  {plan.trainings} task trainings ({plan.trainings_alone} without sharing)"
        else:
            work = "  nothing is trained: every training is in the cache; only merges and evaluations run"
        if seconds is not None and processes:
            work += f", about {_duration(seconds / processes)} on {processes} process{'es' * (processes > 1)}"
        lines.append(f"{work}, at most {max(1, size / 1e6):,.0f} MB of disk")
    for cell in {(c.dataset.key, c.n_tasks, c.protocol.train): c for c in cells}.values():
        steps, warmup = cell.opt_steps() / len(cell.trained_tasks), cell.protocol.train.warmup_steps
        if warmup != "auto" and warmup > steps / 2:
            lines.append(
                f"  warning: {cell.dataset.key} T={cell.n_tasks}, {cell.protocol.key}: {warmup} warm-up steps are "
                f"more than half of the {steps:.0f} steps of a task; lower train.warmup_steps"
            )
    for key, why_not in plan.blocked.items():
        lines.append(f"  not on this machine: {key}: {why_not}")
    return "\n".join(lines)


def _duration(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 90
        else f"{seconds / 60:.0f} min"
        if seconds < 5400
        else f"{seconds / 3600:.1f} h"
    )
