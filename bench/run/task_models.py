"""Task models from a replay folder, and a run's own written into one."""

from __future__ import annotations

from pathlib import Path

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from bench.common.errors import UserError
from bench.common.files import save_plain, write_atomic
from bench.config.files import shown_image
from bench.method.weights import Weights
from bench.model.backbone import Backbone
from bench.model.heads import Head
from bench.offline.checkpoints import fold_adapter
from bench.plan.cell import Cell
from bench.plan.replayed import ReplayCell
from bench.run.train import Learnt


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({error}); write it again") from None


def _of_task(cell: ReplayCell, t: int) -> dict[str, Tensor]:
    """Tensors of theta*_t under timm's names."""
    folder, file = cell.source.path / f"task_{t}", cell.source.path / f"task_{t}.safetensors"
    if file.is_file():
        return _tensors(file)
    return fold_adapter(folder, _tensors(cell.source.path / "pretrained.safetensors"))


def given_backbone(cell: ReplayCell, device: str) -> Backbone:
    """theta_0, restricted to the tensors that training changed in some task."""
    # The checksum there is the whole folder's: it names the cell.
    config = cell.protocol.backbone.model_copy(update={"sha256": None})
    protocol = cell.protocol.model_copy(update={"backbone": config})
    backbone = Backbone(protocol, shown_image(protocol, cell.dataset), device)
    theta_0 = backbone.pretrained.tensors()
    changed: set[str] = set()
    for t in range(1, cell.n_tasks + 1):
        where = f"{cell.source.path}/task_{t}"
        for name, tensor in backbone.own_names(_of_task(cell, t)).items():
            if name.startswith(backbone.classifiers):
                continue
            if name not in theta_0:
                raise UserError(f"{where}: tensor {name!r} is not in the pretrained model; use timm's names")
            if tensor.shape != theta_0[name].shape:
                shapes = f"{tuple(tensor.shape)}, the pretrained one {tuple(theta_0[name].shape)}"
                raise UserError(f"{where}: tensor {name!r} has shape {shapes}")
            if not bool(torch.isfinite(tensor).all()):
                raise UserError(f"{where}: tensor {name!r} holds values that are not finite")
            if not torch.equal(tensor.to(theta_0[name]), theta_0[name]):
                changed.add(name)
    if not changed:
        raise UserError(f"{cell.source.path}: every task's tensors equal the pretrained ones; nothing was trained")
    backbone.pretrained = Weights.of({name: view for name, view in theta_0.items() if name in changed})
    return backbone


def check_folder(cell: ReplayCell) -> None:
    """Read every file of the cell's folder once, so that a mistake in one is told before anything runs.

    Raises:
        UserError: which file, and what is wrong with it.
    """
    backbone = given_backbone(cell, "cpu")
    for t in range(1, cell.n_tasks + 1):
        given_model(cell, backbone, t)
        given_start(cell, backbone, t, backbone.pretrained)


def _adapted(backbone: Backbone, tensors: dict[str, Tensor]) -> Weights:
    given = backbone.own_names(tensors)
    return backbone.pretrained.with_tensors({n: given[n] for n in backbone.pretrained.layout.names if n in given})


def given_model(cell: ReplayCell, backbone: Backbone, t: int) -> Learnt:
    """theta*_t and its head, from the folder."""
    file, classes = cell.source.path / f"head_{t}.safetensors", cell.classes_of(t)
    told = _tensors(file)
    if set(told) - {"normalise"} != {"weight", "bias"} or tuple(told["weight"].shape) != (classes, backbone.dim):
        shape = {name: tuple(x.shape) for name, x in told.items()}
        raise UserError(f"{file}: holds {shape}; a head is weight ({classes}, {backbone.dim}) and bias ({classes},)")
    head = Head.of({name: x.float() for name, x in told.items()}, backbone.device)
    return Learnt(_adapted(backbone, _of_task(cell, t)), [head], 0, 0.0, {"loss": {}, "grad_norm": {}})


def keep_task(folder: Path, backbone: Backbone, t: int, learnt: Learnt, start: Weights | None, served: Weights) -> None:
    """Write what a run has of task t into a replay folder: theta*_t, its head, where it began and theta_hat_t."""
    if t == 1:
        save_plain(folder / "pretrained.safetensors", backbone.export(backbone.pretrained))
    save_plain(folder / f"task_{t}.safetensors", backbone.export(learnt.weights))
    save_plain(folder / f"served_{t}.safetensors", backbone.export(served))
    if start is not None and t > 1:
        save_plain(folder / f"start_{t}.safetensors", backbone.export(start))
    save_plain(folder / f"head_{t}.safetensors", learnt.heads[-1].tensors())


def keep_config(folder: Path, cell: Cell, tasks: list[list[int]]) -> None:
    """Write ``replay.yaml`` of a run: last, so that its presence says that the folder is whole."""
    image, train = cell.dataset.image, cell.protocol.train
    told = {
        "dataset": cell.request["dataset"], "name": cell.id, "source": f"clmerge run {cell.id}",
        "start": cell.method.start,
        "backbone": {"model": cell.protocol.backbone.model, "options": cell.protocol.backbone.options},
        "tasks": tasks, "run_seed": cell.run_seed, "mean": image.mean, "std": image.std,
        "temperature": train.temperature, "batch": train.batch, "fisher_samples": cell.protocol.fisher_samples,
        "eval_batch": cell.protocol.eval_batch,
    }  # fmt: skip
    write_atomic(folder / "replay.yaml", yaml.safe_dump(told, sort_keys=False))


def given_start(cell: ReplayCell, backbone: Backbone, t: int, policy: Weights) -> Weights:
    """Where training of task t began: the folder's word, or what the start policy says."""
    file = cell.source.path / f"start_{t}.safetensors"
    return _adapted(backbone, _tensors(file)) if file.is_file() else policy
