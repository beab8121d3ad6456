"""Where theta*_t comes from: trained here (or in the cache already), or given in a replay folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from bench.common.cache import Store
from bench.common.errors import UserError
from bench.config.files import shown_image
from bench.data.stream import Stream, TaskData
from bench.method import Trainer
from bench.method.protect import unchanged
from bench.method.weights import Weights
from bench.model.backbone import Backbone
from bench.model.heads import Head
from bench.offline.checkpoints import fold_adapter
from bench.plan.cell import Cell
from bench.plan.replayed import ReplayCell
from bench.run.live_task import directions
from bench.run.train import Learnt, train


@dataclass(frozen=True)
class TaskModel:
    """theta*_t as the loop over the stream takes it."""

    start: Weights  #: where training began
    learnt: Learnt  #: theta*_t, heads, by-products
    spent: float  #: seconds of training just now; 0 where it lay in the cache or was given


class TaskModels(Protocol):
    """The source of a cell's task models; one instance a run of the cell."""

    def __init__(
        self, cell: Cell, store: Store, stream: Stream, backbone: Backbone, trainer: Trainer, record: tuple[str, ...]
    ) -> None:
        """``trainer`` has begun; ``record`` are the by-products that the rule wants."""
        ...

    @staticmethod
    def backbone(cell: Cell, device: str) -> Backbone:
        """The pretrained model that the task models belong to."""
        ...

    def of(self, current: TaskData, start: Weights, served: Weights, earlier: Sequence[Head]) -> TaskModel:
        """theta*_t, begun where the start policy says, unless the source knows better; ``served`` is theta_hat_{t-1},
        ``earlier`` are the heads of the tasks before.

        Raises:
            FloatingPointError: training diverged.
            ChangedInPlaceError: the trainer wrote into what it was handed; nothing of that training is kept.
            UserError: a given file is not what it should be.
        """
        ...


class TrainedHere:
    """Trained in this process, or before with the same recipe."""

    def __init__(
        self, cell: Cell, store: Store, stream: Stream, backbone: Backbone, trainer: Trainer, record: tuple[str, ...]
    ) -> None:
        self._cell, self._store, self._stream = cell, store, stream
        self._backbone, self._trainer, self._record = backbone, trainer, record

    @staticmethod
    def backbone(cell: Cell, device: str) -> Backbone:
        """From the protocol's file of weights."""
        return Backbone(cell.protocol, shown_image(cell.protocol, cell.dataset), device)

    def of(self, current: TaskData, start: Weights, served: Weights, earlier: Sequence[Head]) -> TaskModel:
        """Out of the cache where it is there with the by-products asked for, else trained, and kept for others."""
        record, kept = self._record, self._store.load("train", self._cell.train_keys[current.t])
        if kept is not None and set(record) <= set(kept[1]["record"]):
            return TaskModel(start, self._read(*kept, start), 0.0)
        if kept is not None:  # by-products that others have asked for stay, lest two rules undo each other's in turn
            kinds = {wish.partition(":")[0] for wish in record}
            record = (*record, *(wish for wish in kept[1]["record"] if wish.partition(":")[0] not in kinds))
        with unchanged(f"trainer {self._trainer.key}", {"start": start, "self.pretrained": self._backbone.pretrained}):
            learnt = self._train(current, start, served, record, earlier)
        # A task that began at merged weights is mostly nobody else's; the first, begun at theta_0, may be anybody's.
        if self._cell.chain_is_shared or current.t == 1:
            self._keep(current, learnt, record)
        return TaskModel(start, learnt, learnt.seconds)

    def _train(
        self, current: TaskData, start: Weights, served: Weights, record: tuple[str, ...], earlier: Sequence[Head]
    ) -> Learnt:
        cell, trainer = self._cell, self._trainer
        tasks = self._stream.tasks[: current.t] if trainer.data == "seen" else [current]
        chosen = directions(
            trainer, self._backbone, self._stream, current, cell.protocol, earlier, cell.run_seed, self._store, start,
            served,
        )  # fmt: skip
        return train(
            self._backbone, self._stream, tasks, trainer, start, cell.protocol, cell.run_seed, record, earlier=earlier,
            served=served, directions=chosen,
        )  # fmt: skip

    def _read(self, tensors: dict[str, Tensor], header: dict[str, Any], start: Weights) -> Learnt:
        device = self._backbone.device
        dense = {k: Weights(v.to(device), start.layout) for k, v in tensors.items() if not k.startswith("head")}
        heads = [Head.of(tensors, device, f"head.{i}.") for i in range(header["heads"])]
        recorded = {k: [dense[f"{k}.{i}"].to("cpu") for i in range(n)] for k, n in header["recorded"].items()}
        return Learnt(dense["weights"], heads, header["steps"], header["seconds"], header["onset"], recorded)

    def _keep(self, current: TaskData, learnt: Learnt, record: tuple[str, ...]) -> None:
        tensors = {"weights": learnt.weights.vector}
        for i, head in enumerate(learnt.heads):
            tensors |= head.tensors(f"head.{i}.")
        for kind, copies in learnt.recorded.items():
            tensors |= {f"{kind}.{i}": w.vector for i, w in enumerate(copies)}
        header = {
            "record": list(record), "recorded": {k: len(v) for k, v in learnt.recorded.items()},
            "heads": len(learnt.heads), "steps": learnt.steps, "seconds": learnt.seconds, "onset": learnt.onset,
        }  # fmt: skip
        self._store.save("train", self._cell.train_keys[current.t], tensors, header)


class GivenFolder:
    """Trained elsewhere: a replay folder."""

    def __init__(
        self, cell: Cell, store: Store, stream: Stream, backbone: Backbone, trainer: Trainer, record: tuple[str, ...]
    ) -> None:
        self._cell, self._backbone = _given(cell), backbone

    @staticmethod
    def backbone(cell: Cell, device: str) -> Backbone:
        """theta_0, restricted to the tensors that training changed in some task."""
        return given_backbone(_given(cell), device)

    def of(self, current: TaskData, start: Weights, served: Weights, earlier: Sequence[Head]) -> TaskModel:
        """What the folder holds of task t; where it says nothing of the start, the policy's stands."""
        begun = _given_start(self._cell, self._backbone, current.t, start)
        return TaskModel(begun, given_model(self._cell, self._backbone, current.t), 0.0)


SOURCES: dict[type[Cell], type[TaskModels]] = {Cell: TrainedHere, ReplayCell: GivenFolder}


def _given(cell: Cell) -> ReplayCell:
    assert isinstance(cell, ReplayCell)
    return cell


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
    _check_finite(theta_0, f"{cell.source.path}/pretrained.safetensors")
    buffers = dict(backbone.module.named_buffers())
    changed: set[str] = set()
    for t in range(1, cell.n_tasks + 1):
        where = f"{cell.source.path}/task_{t}"
        for name, tensor in backbone.own_names(_of_task(cell, t)).items():
            if name.startswith(backbone.classifiers):
                continue
            if name in buffers:
                _check_buffer(buffers[name], tensor, f"{where}: {name!r}")
                continue
            if name not in theta_0:
                raise UserError(f"{where}: tensor {name!r} is not in the pretrained model; use timm's names")
            if tensor.shape != theta_0[name].shape:
                shapes = f"{tuple(tensor.shape)}, the pretrained one {tuple(theta_0[name].shape)}"
                raise UserError(f"{where}: tensor {name!r} has shape {shapes}")
            _check_finite({name: tensor}, where)
            if not torch.equal(tensor.to(theta_0[name]), theta_0[name]):
                changed.add(name)
    if not changed:
        raise UserError(f"{cell.source.path}: every task's tensors equal the pretrained ones; nothing was trained")
    backbone.pretrained = Weights.of({name: view for name, view in theta_0.items() if name in changed})
    return backbone


def _check_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise UserError(f"{where}: tensor {name!r} holds values that are not finite")


def _check_buffer(pretrained: Tensor, tensor: Tensor, where: str) -> None:
    """Buffers are no weights: a rule does not merge them, so that a model which needs its own cannot be served."""
    if not torch.equal(tensor.to(pretrained), pretrained):
        raise UserError(
            f"{where} is a buffer (such as BatchNorm's running statistics) that differs from the pretrained model's; "
            "buffers are not merged: train with BatchNorm in evaluation mode, or leave them out if they do not matter"
        )


def check_folder(cell: ReplayCell) -> None:
    """Read every file of the cell's folder once, so that a mistake in one is told before anything runs.

    Raises:
        UserError: which file, and what is wrong with it.
    """
    backbone = given_backbone(cell, "cpu")
    for t in range(1, cell.n_tasks + 1):
        given_model(cell, backbone, t)
        _given_start(cell, backbone, t, backbone.pretrained)


def _adapted(backbone: Backbone, tensors: dict[str, Tensor]) -> Weights:
    given = backbone.own_names(tensors)
    return backbone.pretrained.with_tensors({n: given[n] for n in backbone.pretrained.layout.names if n in given})


def given_model(cell: ReplayCell, backbone: Backbone, t: int) -> Learnt:
    """theta*_t and its head, from the folder."""
    file, classes = cell.source.path / f"head_{t}.safetensors", cell.classes_of(t)
    told = _tensors(file)
    shapes = {name: tuple(x.shape) for name, x in told.items()}
    if shapes | {"normalise": ()} != {"weight": (classes, backbone.dim), "bias": (classes,), "normalise": ()}:
        raise UserError(f"{file}: holds {shapes}; a head is weight ({classes}, {backbone.dim}) and bias ({classes},)")
    _check_finite(told, str(file))
    head = Head.of({name: x.float() for name, x in told.items()}, backbone.device)
    return Learnt(_adapted(backbone, _of_task(cell, t)), [head], 0, 0.0, {"loss": {}, "grad_norm": {}})


def _given_start(cell: ReplayCell, backbone: Backbone, t: int, policy: Weights) -> Weights:
    """Where training of task t began: the folder's word, or what the start policy says."""
    file = cell.source.path / f"start_{t}.safetensors"
    return _adapted(backbone, _tensors(file)) if file.is_file() else policy
