"""From a suite to cells, each checked before anything runs. Torch-free, so that planning takes a moment."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

from bench.code import code_of_class, code_of_modules
from bench.config import DatasetConfig, ProtocolConfig, SuiteConfig
from bench.data.dataset import availability, prepared_key
from bench.errors import UserError
from bench.method import Start
from bench.order import boundaries, class_order
from bench.per_method import check_names, for_method
from bench.presets import DATASETS, for_dataset, load_dataset_config, load_protocol, shown_image
from bench.registry import Method, Registry
from bench.store import key_of
from bench.text_rows import check_rows, rows_digest
from bench.weights_files import check_weights, weights_digest

TRAINING_CODE = (
    "train.py", "backbone.py", "heads.py", "text_rows.py", "stream.py", "order.py", "weights.py", "seeds.py",
    "method.py", "data/images.py", "data/transforms.py", "data/autoaugment.py",
)  # fmt: skip
MERGING_CODE = (
    "task.py", "statistics.py", "evaluate.py", "serving.py", "minimise.py", "sparsify.py", "spectral.py",
    "exemplars.py",
)  # fmt: skip
#: of a protocol: words, and what is applied to the other fields before a cell is made
NO_IDENTITY = {
    "key", "title", "about", "base", "inferred", "tuned", "per_dataset", "per_method", "tuning", "variant_of",
    "seconds_per_step",
}  # fmt: skip
TRAINING_FIELDS = {"backbone", "adapter", "image", "augment", "train", "threads"}


@dataclass(frozen=True)
class Cell:
    """One run of the grid: dataset x T x method x protocol x class_order_seed x run_seed."""

    dataset: DatasetConfig
    n_tasks: int
    protocol: ProtocolConfig  #: with this dataset's and this method's overrides applied
    method: Method
    class_order_seed: int
    run_seed: int
    eval_split: str
    request: dict[str, Any] = field(compare=False)  #: how to make this cell again in another process (JSON-able)

    @cached_property
    def id(self) -> str:
        """Readable, and ending in a hash of everything that defines the cell (but not of any code)."""
        identity = key_of(
            prepared_key(self.dataset, self.protocol.image),
            self.n_tasks,
            self.protocol.model_dump(mode="json", exclude=NO_IDENTITY),
            self.method.identity(),
            self.class_order_seed,
            self.run_seed,
            self.eval_split,
        )
        method = "".join(c if c.isalnum() or c in "_-" else "." for c in self.method.key)[:48]
        split = "" if self.eval_split == "test" else f"-{self.eval_split}"
        protocol = self.protocol.variant_of or self.protocol.key
        seeds = f"c{self.class_order_seed}-r{self.run_seed}"
        return f"{self.dataset.key}-T{self.n_tasks}-{protocol}{split}-{method}-{seeds}-{identity[:10]}"

    @property
    def task_classes(self) -> list[list[int]]:
        """The labels of each task where they are listed one by one; here the class order cuts them."""
        return []

    def protocol_told(self) -> dict[str, Any]:
        """What the record says of the protocol."""
        return self.protocol.model_dump(mode="json")

    def coordinates(self) -> dict[str, Any]:
        """The cell's place in the grid, as records and tables have it."""
        return {
            "dataset": self.dataset.key,
            "n_tasks": self.n_tasks,
            "protocol": self.protocol.key,
            "method": self.method.key,
            "variant": self.method.variant,
            "start": self.method.start,
            "class_order_seed": self.class_order_seed,
            "run_seed": self.run_seed,
            "eval_split": self.eval_split,
        }

    def code(self) -> dict[str, str]:
        """Hashes of the code that training, and that merging and evaluation, run through."""
        return {
            "train": key_of(code_of_modules(*TRAINING_CODE), code_of_class(self.method.trainer))[:16],
            "method": key_of(code_of_modules(*MERGING_CODE), code_of_class(self.method.rule))[:16],
        }

    @cached_property
    def trained_tasks(self) -> list[int]:
        """The t at which something is trained: all, or only the last for a trainer that sees all data."""
        return [self.n_tasks] if self.method.trainer.data == "seen" else list(range(1, self.n_tasks + 1))

    @cached_property
    def train_keys(self) -> dict[int, str]:
        """For each trained t, the key of its artifact: a hash of everything the training is a function of.

        Where a training starts from what was made before (previous or merged weights, a trainer with memory), the
        key of that stands for it, so keys are known before anything is computed.
        """
        code, protocol = self.code(), self.protocol
        trainer = self.method.identity()["trainer"]
        # linear, ncm, ridge and refit train the same heads
        head = {"text"} if protocol.head.kind == "zero_shot" else {"init_std"}
        base = [
            prepared_key(self.dataset, protocol.image),
            protocol.model_dump(mode="json", include=TRAINING_FIELDS),
            protocol.lora.model_dump(mode="json") if protocol.adapter == "lora" else None,
            protocol.head.model_dump(mode="json", include=head),
            weights_digest(protocol),
            rows_digest(protocol.head) if protocol.head.kind == "zero_shot" else None,
            trainer,
            code["train"],
            self.run_seed,
            ["val", protocol.val_fraction] if self.held_out else ["test", None],
            version("torch"),
        ]
        served = parent = "pretrained"
        keys: dict[int, str] = {}
        # What a trainer remembers comes from the tasks before, by way of their statistics.
        memory = [protocol.fisher_samples, code["method"]] if self.method.trainer.states() else None
        borders = [columns.stop for columns in boundaries(self.dataset.classes, self.n_tasks)]
        order = class_order(self.dataset.classes, self.class_order_seed, protocol.class_order)
        joint = self.method.trainer.data == "seen"
        for t in self.trained_tasks:
            classes = order[: borders[t - 1]] if joint or t == 1 else order[borders[t - 2] : borders[t - 1]]
            begins = {"pretrained": "pretrained", "previous": parent, "merged": served}[self.method.start]
            # A joint training's heads have the tasks' borders; any other sees nothing of the stream but its classes.
            keys[t] = key_of(
                "train",
                base,
                classes,
                borders if joint else None,
                begins,
                [parent, *memory] if memory and t > 1 else None,
            )
            parent = keys[t]
            rule = self.method.identity()["rule"]
            served = key_of("served", served, parent, rule, code["method"], protocol.fisher_samples)
        return keys

    @property
    def held_out(self) -> bool:
        """Whether the validation part is kept out of training."""
        return self.eval_split != "test"

    @property
    def chain_is_shared(self) -> bool:
        """Whether other rules can use this cell's trainings (they do not start from what this rule served)."""
        return self.method.start != "merged"

    def opt_steps(self) -> int:
        """Optimiser steps of all trainings, estimated from the dataset's counts."""
        images = self.dataset.train * (1 - self.protocol.val_fraction if self.held_out else 1.0)
        per_task = images if self.method.trainer.data == "seen" else images / self.n_tasks
        train = self.protocol.train
        return len(self.trained_tasks) * train.epochs * train.passes * math.ceil(per_task / train.batch)


def parse_seeds(text: str, where: str = "--seeds") -> list[int]:
    """ "3" to [0, 1, 2]; "0,1,7" and "3-12" list repeats.

    Raises:
        UserError: not a count, list or span of non-negative integers.
    """
    spans = []
    try:
        if "," not in text and "-" not in text:
            spans.append(range(int(text)))
        else:
            for part in filter(None, text.split(",")):
                low, dash, high = part.partition("-")
                spans.append(range(int(low), int(high if dash else low) + 1))
    except ValueError:
        spans = []
    most = 100_000  # more is a slip, and would fill the memory
    seeds = [seed for span in spans for seed in span] if sum(map(len, spans)) <= most else []
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds) or max(seeds) >= 2**32:
        raise UserError(
            f"{where}: {text!r} is neither a count (3), a list (0,1,7) nor a span (3-12) of distinct repeats"
        )
    return seeds


def all_datasets(data: Path, folders: list[Path]) -> tuple[list[str], dict[str, str]]:
    """Keys of the stream datasets whose data is on this machine, and of the others with the reason."""
    here, blocked = [], {}
    for file in sorted({p.stem: p for f in [*folders, DATASETS] for p in f.glob("*.yaml")}.values()):
        config = load_dataset_config(str(file), folders)
        if config.role == "stream":
            why_not = availability(config, data)
            if why_not is None:
                here.append(config.key)
            else:
                blocked[config.key] = why_not
    return here, blocked


def expand(
    suite: SuiteConfig,
    registry: Registry,
    data: Path,
    folders: list[Path],
    overrides: dict[str, Any] | None = None,
    class_order_seed: int | None = None,
    run_seed: int | None = None,
) -> tuple[list[Cell], dict[str, str]]:
    """Every cell of a suite, each checked, without duplicates; and the datasets that ``all`` left out.

    ``overrides`` stand above those of the suite.

    Raises:
        UserError: an unknown name, a task count that does not fit, a dataset that is named and not there, ...
    """
    here, blocked = all_datasets(data, folders) if "all" in suite.datasets else ([], {})
    named = [name for name in suite.datasets if name != "all"]
    repeats = [
        (repeat if class_order_seed is None else class_order_seed, repeat if run_seed is None else run_seed)
        for repeat in parse_seeds(suite.seeds)
    ]
    starts: list[Start | None] = [*suite.start] or [None]
    trainers: list[str | None] = [*suite.trainers] or [None]
    cells: dict[str, Cell] = {}
    load = cache(load_protocol_of(registry, suite, repeats))
    for name in dict.fromkeys([*named, *here]):
        dataset = load_dataset_config(name, folders)
        for preset, chosen in product(suite.protocols or [dataset.protocol], suite.alternatives()):
            changes = {**chosen, **(overrides or {})}
            adapted = for_dataset(load(preset, json.dumps(changes, sort_keys=True)), dataset.key)
            try:
                _check_stream(dataset, suite, data)
                _check_backbone(adapted, dataset)
            except UserError as error:
                if name in named:
                    raise
                blocked[name] = str(error)  # "all" is what can run here
                continue
            for spelling, trainer, start in product(suite.methods, trainers, starts):
                method, own, entry = for_method(registry, adapted, changes, spelling, start, trainer)
                _refuse(method, own, dataset)
                for n_tasks, (order, run) in product(suite.tasks or dataset.tasks[:1], repeats):
                    request = {
                        "dataset": name, "n_tasks": n_tasks, "protocol": preset, "overrides": changes,
                        "method": method.variant, **entry, "class_order_seed": order, "run_seed": run,
                        "eval_split": suite.eval_split,
                    }  # fmt: skip
                    cell = Cell(dataset, n_tasks, own, method, order, run, suite.eval_split, request)
                    cells.setdefault(cell.id, cell)
    if not cells:
        raise UserError("datasets: nothing to run; " + "; ".join(f"{k}: {v}" for k, v in blocked.items()))
    return list(cells.values()), blocked


def load_protocol_of(
    registry: Registry, suite: SuiteConfig, repeats: list[tuple[int, int]]
) -> Callable[[str, str], ProtocolConfig]:
    """Loads a preset with overrides (JSON), checked against the plugins and the suite's repeats."""

    def load(preset: str, changes: str) -> ProtocolConfig:
        protocol = load_protocol(preset, json.loads(changes))
        check_names(registry, protocol)
        _refuse_tuned_on(protocol, suite, repeats)
        return protocol

    return load


def _check_stream(dataset: DatasetConfig, suite: SuiteConfig, data: Path) -> None:
    """Whether the dataset is a stream, is there, and has classes for every task.

    Raises:
        UserError: it is not, or has not.
    """
    if dataset.role != "stream":
        raise UserError(f"datasets: {dataset.key!r} is for pre-training the backbone, not a stream")
    why_not = availability(dataset, data)
    if why_not is not None:
        raise UserError(f"dataset {dataset.key!r} is not on this machine: {why_not}")
    for n_tasks in suite.tasks:
        if not 1 <= n_tasks <= dataset.classes:
            raise UserError(
                f"tasks: {n_tasks} tasks do not fit {dataset.key!r}, which has {dataset.classes} classes; "
                f"use 1 to {dataset.classes}"
            )


def _check_backbone(protocol: ProtocolConfig, dataset: DatasetConfig) -> None:
    """Whether the weights can be had and the model takes what it would be shown, as far as its options tell.

    Raises:
        UserError: they cannot, or it does not.
    """
    shown, options = shown_image(protocol, dataset), protocol.backbone.options
    takes = options.get("in_chans", 3), options.get("img_size", shown.size)
    if takes != (shown.channels, shown.size):
        raise UserError(
            f"protocol {protocol.key}: its backbone takes {takes[0]} channels of {takes[1]} pixels a side, and "
            f"{dataset.key} has {shown.channels} of {shown.size}; use another protocol, such as {dataset.protocol}"
        )
    check_weights(protocol)


def _refuse_tuned_on(protocol: ProtocolConfig, suite: SuiteConfig, repeats: list[tuple[int, int]]) -> None:
    """What was chosen on some class orders is not measured on them."""
    if protocol.tuning is None or suite.eval_split == "val":
        return
    tuned_on = set(parse_seeds(protocol.tuning.repeats, f"protocol {protocol.key}: tuning.repeats"))
    both = sorted(tuned_on & {order for order, _ in repeats})
    if both:
        raise UserError(
            f"--seeds: {', '.join(map(str, both))}: protocol {protocol.key} was tuned on these class orders "
            f"({protocol.tuning.repeats}); use other repeats"
        )


def _refuse(method: Method, protocol: ProtocolConfig, dataset: DatasetConfig) -> None:
    """Settings that contradict each other, found before anything runs."""
    kind, where = protocol.head.kind, f"protocol {protocol.key}"
    class_order(dataset.classes, 0, protocol.class_order)
    if kind == "zero_shot":
        check_rows(protocol.head, dataset.classes)
    if method.rule.experts and kind not in ("linear", "zero_shot"):
        raise UserError(f"{where}: head.kind: {method.key!r} serves every task by its own model; use the linear head")
    if protocol.adapter == "full" and method.trainer.adapt and method.trainer.factors != "AB":
        raise UserError(f"{where}: adapter: full has no LoRA factor to keep fixed, as {method.key!r} does")
    if protocol.train.schedule == "multistep" and not protocol.train.milestones:
        raise UserError(f"{where}: train.milestones: missing; schedule multistep lowers the rate after these epochs")


def cell_of(request: dict[str, Any], registry: Registry, folders: list[Path]) -> Cell:
    """The cell of a request, made again in another process."""
    if "replay" in request:
        from bench.replay import replay_cell

        return replay_cell(request, registry, folders)
    dataset = load_dataset_config(request["dataset"], folders)
    changes = request["overrides"]
    adapted = for_dataset(load_protocol(request["protocol"], changes), dataset.key)
    method, own, _ = for_method(registry, adapted, changes, request["method"], entry=request.get("per_method"))
    seeds = request["class_order_seed"], request["run_seed"]
    return Cell(dataset, request["n_tasks"], own, method, *seeds, request["eval_split"], request)
