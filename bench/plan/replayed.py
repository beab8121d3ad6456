"""Task models that were trained elsewhere, replayed: any rule merges them, and the stream's test images are counted.

A folder (``clmerge run --keep-weights`` writes the same):

    replay.yaml               what they are: see ReplayConfig
    pretrained.safetensors    theta_0: the whole model, timm's names
    task_1.safetensors ...    theta*_t: tensors under the same names (all, or those that training changed);
    task_1/ ...               or a PEFT LoRA adapter of the pretrained model
    head_1.safetensors ...    ``weight`` (classes, D) and ``bias`` (classes,), rows in the order of the task's classes;
                              with a tensor ``normalise`` it is given features of length 1
    start_2.safetensors ...   where training of task t began, only if neither theta_0 nor theta*_{t-1}
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import pydantic

from bench.common.errors import UserError
from bench.config.files import load_dataset_config, protocol_of, read_yaml
from bench.config.schema import FULL, DatasetConfig, Section, check
from bench.data.dataset import data_digest
from bench.data.scenario import listed, scenario_of
from bench.method import Trainer
from bench.plan.cell import Cell
from bench.plan.hashed_code import MERGING_CODE, REPLAY_CODE
from bench.registry import Registry


class Given(Trainer):
    """Trained elsewhere; this program never trains with it."""

    key = "given"


class ReplayModel(Section):
    """The model of the folder's checkpoints: a timm name and the keyword arguments of ``timm.create_model``."""

    model: str
    options: dict[str, Any] = {}


class ReplayConfig(Section):
    """``replay.yaml``: what the folder's weights are."""

    dataset: str  #: a key, or a YAML file (relative: to the folder)
    source: str  #: who trained them, and how: printed with every number
    name: str = pydantic.Field("", pattern=r"[\w.-]*$")  #: of the table's block; default: the folder's
    backbone: ReplayModel
    start: Literal["pretrained", "previous", "merged"] = "pretrained"  #: where training of each task began
    tasks: list[list[int]] = []  #: the dataset's labels of each task, in the order of the head's rows
    domains: list[int] = []  #: or, of a domain-incremental dataset: its number of each task's domain
    class_order_seed: int | None = pydantic.Field(None, ge=0)  #: or: cut evenly in this order
    run_seed: int = pydantic.Field(0, ge=0)  #: of statistics and of rules that draw
    mean: list[float] | None = None  #: per channel, where the model was trained with another than the dataset's YAML
    std: list[float] | None = None
    temperature: float = pydantic.Field(1.0, gt=0)  #: of the training loss, for the Fisher and `Task.logits`
    batch: int = pydantic.Field(64, ge=1)
    fisher_samples: int = pydantic.Field(2048, ge=1)
    eval_batch: int = pydantic.Field(250, ge=1)

    @pydantic.model_validator(mode="after")
    def _one_of(self) -> ReplayConfig:
        if sum((bool(self.tasks), bool(self.domains), self.class_order_seed is not None)) != 1:
            raise ValueError("give either tasks (the labels of each task), domains or class_order_seed")
        labels = [label for task in self.tasks for label in task]
        if len(set(labels)) < len(labels) or any(not task for task in self.tasks):
            raise ValueError("tasks: a label is in two tasks, or a task is empty")
        return self


def folder_digest(path: Path) -> str:
    """128-bit hex of all files of a replay folder that a replay reads; looked up again only where one has changed."""
    files = sorted(file for file in path.rglob("*") if file.is_file() and "served_" not in file.name)
    return _digest_of(path, tuple((file, file.stat().st_size, file.stat().st_mtime_ns) for file in files))


@lru_cache(maxsize=64)
def _digest_of(path: Path, files: tuple[tuple[Path, int, int], ...]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for file, size, _ in files:
        digest.update(f"{file.relative_to(path)}:{size}:".encode())
        with file.open("rb") as opened:
            while chunk := opened.read(2**20):
                digest.update(chunk)
    return digest.hexdigest()


@dataclass(frozen=True)
class Folder:
    """A checked replay folder."""

    path: Path
    config: ReplayConfig
    n_tasks: int
    digest: str  #: of all its files

    @classmethod
    def read(cls, path: Path) -> Folder:
        """Look the folder over.

        Raises:
            UserError: it is not there, or a file is missing, has no place, or does not fit ``replay.yaml``.
        """
        if not (path / "replay.yaml").is_file():
            raise UserError(f"{path}: no replay.yaml there; docs/replay.md says what a replay folder holds")
        config = read_yaml(path / "replay.yaml", ReplayConfig)
        if not (path / "pretrained.safetensors").is_file():
            raise UserError(f"{path}: no pretrained.safetensors (theta_0, the whole model)")
        found = {int(m[1]) for file in path.iterdir() if (m := re.fullmatch(r"task_(\d+)(\.safetensors)?", file.name))}
        n_tasks = len(config.tasks or config.domains) or len(found)
        for t in range(1, max(n_tasks, *found, 1) + 1):
            if t not in found:
                raise UserError(f"{path}: no task_{t}.safetensors and no adapter folder task_{t}")
            if t > n_tasks:
                raise UserError(f"{path}: task_{t} has no place: replay.yaml lists {n_tasks} tasks")
            if not (path / f"head_{t}.safetensors").is_file():
                raise UserError(f"{path}: no head_{t}.safetensors (weight and bias of task {t}'s classes)")
            if config.start == "merged" and t > 1 and not (path / f"start_{t}.safetensors").is_file():
                raise UserError(f"{path}: start is merged, so start_{t}.safetensors must say where task {t} began")
        return cls(path, config, n_tasks, folder_digest(path))

    def as_json(self) -> dict[str, Any]:
        """The folder for another process."""
        config = self.config.model_dump(mode="json")
        return {"path": str(self.path), "config": config, "digest": self.digest, "n_tasks": self.n_tasks}

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> Folder:
        """The folder of :meth:`as_json`; its files are not looked over again."""
        config = check(told["config"], ReplayConfig, f"{told['path']}/replay.yaml")
        return cls(Path(told["path"]), config, told["n_tasks"], told["digest"])

    def request(self, method: str) -> dict[str, Any]:
        """The words that ask for the cell of this folder and a rule."""
        return {"replay": self.as_json(), "method": method}


@dataclass(frozen=True)
class ReplayCell(Cell):
    """A cell whose task models are given."""

    trains: ClassVar[bool] = False
    merging_code: ClassVar[tuple[str, ...]] = (*MERGING_CODE, *REPLAY_CODE)

    source: Folder = field(kw_only=True, compare=False)

    @cached_property
    def files_digest(self) -> dict[str, str]:
        """Of the whole folder: what it holds is what the cell is about."""
        return {"folder": self.source.digest}

    def changed_since(self, record: Mapping[str, Any], data: Path) -> str:
        """The folder too, where it is still there."""
        if self.source.path.is_dir() and folder_digest(self.source.path) != self.source.digest:
            return "the files of its folder have changed since"
        return super().changed_since(record, data)

    @cached_property
    def train_keys(self) -> dict[int, str]:
        """None: nothing is trained."""
        return {}

    @property
    def task_classes(self) -> list[list[int]]:
        """The labels of each task, or nothing where the class order says it."""
        return self.source.config.tasks

    def classes_of(self, t: int) -> int:
        """How many classes task t has."""
        return len((listed(self.task_classes) or self.cuts)[t - 1].columns)

    def protocol_told(self) -> dict[str, Any]:
        """What the record says of the protocol: nothing of a training that we know nothing about."""
        told = self.protocol.model_dump(mode="json", include={"key", "title", "backbone", "fisher_samples", "threads"})
        return told | {"replay": self.request["replay"]}

    def resolved(self) -> dict[str, Any]:
        """With the folder."""
        return super().resolved() | {"source": self.source.as_json()}

    @classmethod
    def _fields(cls, told: Mapping[str, Any], registry: Registry) -> dict[str, Any]:
        with_given = dataclasses.replace(registry, trainers={**registry.trainers, Given.key: Given})
        return super()._fields(told, with_given) | {"source": Folder.from_json(told["source"])}

    def opt_steps(self) -> int:
        """No optimiser step is taken."""
        return 0


def cell_from_json(told: Mapping[str, Any], registry: Registry) -> Cell:
    """The cell, of either kind, that :meth:`bench.plan.cell.Cell.as_json` has written."""
    return (ReplayCell if "source" in told else Cell).from_json(told, registry)


def replay_cell(request: dict[str, Any], registry: Registry, folders: list[Path], data: Path) -> ReplayCell:
    """The cell of a request made by :meth:`Folder.request`.

    Raises:
        UserError: an unknown rule, dataset or option; a rule that needs by-products of training, or all data.
    """
    source = Folder.from_json(request["replay"])
    config = source.config
    name = config.dataset
    if name.endswith((".yaml", ".yml")):
        name = str(source.path / name)
    dataset = load_dataset_config(name, folders)
    _fits(source, dataset)
    image = dataset.image.model_copy(update={k: v for k in ("mean", "std") if (v := getattr(config, k)) is not None})
    fields = {
        "key": f"replay-{config.name or source.path.name}",
        "title": config.source,
        "backbone": {
            **config.backbone.model_dump(),
            "weights": str(source.path / "pretrained.safetensors"),
            "sha256": source.digest,
        },
        "adapter": FULL,
        # A protocol has learning rates; nothing is trained with these, and the record does not show them.
        "train": {"epochs": 1, "lr": 1, "head_lr": 1, "batch": config.batch, "temperature": config.temperature},
        "fisher_samples": config.fisher_samples,
        "eval_batch": config.eval_batch,
        **({"class_order": config.domains} if config.domains else {}),
    }
    method = registry.resolve_rule(request["method"], config.start, Given)
    wanted = method.build()[1].record
    if wanted:
        raise UserError(f"methods: {method.rule.key!r} needs {', '.join(wanted)} of training, which a folder has not")
    heads = ("linear",) if method.rule.experts else ("linear", "align", "ncm", "ncm_both", "lda", "ridge")
    if method.head not in (None, *heads):
        raise UserError(
            f"methods: {method.key!r}: replayed models take no head {method.head!r}; use {' or '.join(heads)}"
        )
    protocol = protocol_of(fields | {"head": {"kind": method.head or "linear"}}, f"{source.path}/replay.yaml")
    dataset = dataset.model_copy(update={"image": image})
    return ReplayCell(
        dataset, source.n_tasks, protocol, method, config.class_order_seed or 0, config.run_seed, "test", request,
        data_digest(dataset, data, protocol.image), source=source,
    )  # fmt: skip


def _fits(source: Folder, dataset: DatasetConfig) -> None:
    labels = [label for task in source.config.tasks for label in task]
    if labels and not 0 <= min(labels) <= max(labels) < dataset.classes:
        raise UserError(
            f"{source.path}/replay.yaml: tasks: labels {min(labels)} to {max(labels)} do not fit {dataset.key!r}, "
            f"which has classes 0 to {dataset.classes - 1}"
        )
    scenario, config = scenario_of(dataset), source.config
    given = next((name for name in ("tasks", "domains") if getattr(config, name)), scenario.listed_as)
    if given != scenario.listed_as:
        raise UserError(
            f"{source.path}/replay.yaml: {given}: {dataset.key!r} is {scenario.key}; list its {scenario.listed_as}"
        )
    if config.domains and sorted(config.domains) != list(range(source.n_tasks)):
        raise UserError(f"{source.path}/replay.yaml: domains: list each of 0 to {source.n_tasks - 1} once")
    try:
        scenario.check(dataset, source.n_tasks)
    except UserError as error:
        raise UserError(f"{source.path}: {error}") from None
