"""What a run trained and served, written into a replay folder (``clmerge run --keep-weights``)."""

from __future__ import annotations

from pathlib import Path

import yaml

from bench.common.files import save_plain, write_atomic
from bench.data.scenario import Cut
from bench.method.weights import Weights
from bench.model.backbone import Backbone
from bench.plan.cell import Cell
from bench.run.train import Learnt


def keep_task(folder: Path, backbone: Backbone, t: int, learnt: Learnt, start: Weights | None, served: Weights) -> None:
    """Write what a run has of task t into a replay folder: theta*_t, its head, where it began and theta_hat_t."""
    if t == 1:
        save_plain(folder / "pretrained.safetensors", backbone.export(backbone.pretrained))
    save_plain(folder / f"task_{t}.safetensors", backbone.export(learnt.weights))
    save_plain(folder / f"served_{t}.safetensors", backbone.export(served))
    if start is not None and t > 1:
        save_plain(folder / f"start_{t}.safetensors", backbone.export(start))
    save_plain(folder / f"head_{t}.safetensors", learnt.heads[-1].tensors())


def keep_config(folder: Path, cell: Cell, cuts: list[Cut]) -> None:
    """Write ``replay.yaml`` of a run of these tasks: last, so that its presence says that the folder is whole."""
    image, train = cell.dataset.image, cell.protocol.train
    told = {
        "dataset": cell.request["dataset"], "name": cell.id, "source": f"clmerge run {cell.id}",
        "start": cell.method.start,
        "backbone": {"model": cell.protocol.backbone.model, "options": cell.protocol.backbone.options},
        cell.scenario.listed_as: cell.scenario.listing(cuts), "run_seed": cell.run_seed,
        "mean": image.mean, "std": image.std,
        "temperature": train.temperature, "batch": train.batch, "fisher_samples": cell.protocol.fisher_samples,
        "eval_batch": cell.protocol.eval_batch,
    }  # fmt: skip
    write_atomic(folder / "replay.yaml", yaml.safe_dump(told, sort_keys=False))
